"""The trajectory station: what happened in a request is recorded, queued and turned into a learning signal."""

from sona.trajectory._builder import TrajectoryBuilder
from sona.trajectory._record import decode, encode
from sona.trajectory._ring import Ring
from sona.trajectory.buffer import TrajectoryBuffer
from sona.trajectory.signal import RunningBaseline, extract_signals

__all__ = ["Ring", "RunningBaseline", "TrajectoryBuffer", "TrajectoryBuilder", "decode", "encode", "extract_signals"]
