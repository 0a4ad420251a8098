"""What runs on a device: edgekit's own modules in an archive, the wheels under them, and where they are kept there."""
