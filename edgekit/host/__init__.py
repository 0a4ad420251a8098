"""The host computer: its processor, the cache folder, and safe writing of files. Standard library only."""
