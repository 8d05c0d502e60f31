"""The network that counts, from a photograph to log-probabilities of counts, and its files."""
