"""Bridges to what users run already. Each module imports its optional package when it is used, and says which extra brings it."""
