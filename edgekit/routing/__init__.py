"""Local when you can, cloud when you must."""
