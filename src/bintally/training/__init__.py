"""The loop, its distribution over processes, its checkpoints."""
