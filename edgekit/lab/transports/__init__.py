"""The ways to a device, one file each with ``connect(name) -> Transport``. Addresses start with the file's name."""
