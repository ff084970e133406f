"""A process that is a sidecar and nothing else: how it is told to stop, and what keeps it quick."""

import gc
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sona.sidecar.run import Sidecar

SWITCH = 0.0005  # s that the thread that saves may keep the interpreter from the one that learns


@contextmanager
def whole_process(sidecar: Sidecar) -> Iterator[None]:
    """Inside, SIGTERM and the first SIGINT let the sidecar end, and a second SIGINT interrupts it."""

    def stop(number: int, frame: FrameType | None) -> None:
        sidecar.stop()
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    interval = sys.getswitchinterval()
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    sys.setswitchinterval(SWITCH)
    gc.freeze()  # modules are not looked through again and again
    try:
        yield
    finally:
        gc.unfreeze()
        sys.setswitchinterval(interval)
        for number, handler in before.items():
            signal.signal(number, handler)
