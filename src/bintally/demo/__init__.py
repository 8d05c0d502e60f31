"""The demo: an invented warehouse and the renderer of its photographs."""
