"""A run on real data that needs no download: handwritten digits, a frozen model, and feedback for the shown arm only."""

from sona.demo.run import run_demo
from sona.demo.stories import run_story

__all__ = ["run_demo", "run_story"]
