"""Evaluate and calibrate routing on questions with known answers."""
