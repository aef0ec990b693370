"""Training runs that can be stopped at any moment and go on: data, loop, checkpoints, export."""
