"""How fast runs are: predicted, measured, and kept to correct later predictions."""
