"""The computer this runs on: its processor, its cache folder, and how files are written. Standard library only."""
