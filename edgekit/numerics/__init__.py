"""Shared arithmetic in numpy."""
