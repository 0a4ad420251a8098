"""Latency, ceilings, energy, environment and quality of what runs."""
