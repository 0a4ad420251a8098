"""Build a bundle from a checkpoint, and compile it for devices with an NPU."""
