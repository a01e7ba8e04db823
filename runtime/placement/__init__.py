"""Where tensors go: the program that chooses, and the planned run of a finished file."""
