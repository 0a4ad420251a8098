"""What calibration, recovery and distillation give, on the file that ships. See ``__main__`` for how to run it."""
