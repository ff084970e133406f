"""A run on real data that needs no download: handwritten digits, a frozen model, and feedback for the shown arm only."""

from sona.demo.run import run_demo

__all__ = ["run_demo"]
