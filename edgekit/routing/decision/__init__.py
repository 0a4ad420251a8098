"""Decisions and calibration: pure functions, no files, no network, no clock."""
