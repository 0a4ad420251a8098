"""A night's runs in the formats of others, one file each."""
