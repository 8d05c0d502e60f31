"""Training: the loop, its batches and its checkpoints."""
