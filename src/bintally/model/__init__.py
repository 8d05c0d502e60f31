"""Backbone, head, the way from a photograph to a distribution over counts, and its file."""
