"""Verify that a bundle is intact and computes what its source does."""
