"""Loops join the stations: what happens per request (instant), and what later reaches the store (journal)."""
