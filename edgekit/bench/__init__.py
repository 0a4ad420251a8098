"""Measure a bundle on this machine, and find its fastest settings."""
