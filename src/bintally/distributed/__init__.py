"""Processes on GPUs and machines that work together: how they are started, meet, and exchange tensors."""
