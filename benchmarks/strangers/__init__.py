"""What strangers may send: bundles, checkpoints, requests, and other processes on the same disk."""
