"""What a person runs beside the graph."""
