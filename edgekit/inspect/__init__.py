"""What a model is, what it will take, where it fits, and what this machine can do."""
