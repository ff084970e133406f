"""The user's own data through a Router: labelled rows as a simulated bandit, logged decisions as an off-policy estimate."""

from sona.replay.run import ReplayOptions, run_replay

__all__ = ["ReplayOptions", "run_replay"]
