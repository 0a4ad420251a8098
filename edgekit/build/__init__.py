"""A checkpoint in, a bundle out; and for a device with an NPU, the line that goes on from there."""
