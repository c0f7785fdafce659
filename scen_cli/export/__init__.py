"""Ways out of a project: checkpoints that others can load."""
