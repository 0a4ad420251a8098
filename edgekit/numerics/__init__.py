"""Arithmetic that several rooms need, in numpy alone."""
