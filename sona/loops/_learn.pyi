from collections.abc import Sequence

from sona.loops.instant import InstantLoop

def learn_steps(loop: InstantLoop, record: bytes, learned: Sequence[float | None] | None, reward: float | None) -> list[float | None]: ...
