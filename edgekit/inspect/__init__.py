"""Inspect models and bundles, predict what they need and where they fit, and examine this machine."""
