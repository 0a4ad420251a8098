"""Methods compiled by numba, a file each: ``quantize_rows`` gives the bytes of the method of the same name."""
