"""TOML files in, values out: recipes, devices, and what a provider may be told."""
