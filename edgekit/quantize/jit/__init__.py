"""Methods compiled with numba: ``quantize_rows`` of each file returns the same bytes as the method of that name."""
