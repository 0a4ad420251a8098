"""Read the TOML files of recipes, devices and providers."""
