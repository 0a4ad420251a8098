"""Whether a bundle is what it says it is."""
