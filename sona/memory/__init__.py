"""The memory station: what the model knows as a graph that walks can explore, and how integrated a part of it is."""
