"""Training: the loop, its distribution over processes, its checkpoints."""
