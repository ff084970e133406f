"""A child process that is killed at a random moment, and what it had acknowledged by then."""

import multiprocessing
import random
import struct
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

FORKSERVER = multiprocessing.get_context("forkserver")
# What a victim would import on its way, once for all of them.
FORKSERVER.set_forkserver_preload(
    [
        "safetensors.numpy",
        "scipy.sparse.linalg",
        "scipy.special",
        "scipy.optimize",
        "sklearn.cluster",
        "sklearn.model_selection",
        "sona.router",
        "sona.store",
        "sona.store.postgres",
        "sona.contents",
    ]
)


def killed(target: Callable[[str, Connection, int], None], path: Path, rng: random.Random, longest: float) -> list[Any]:
    """Run `target`, kill it at a random moment within `longest` seconds of its first acknowledgement; what it acknowledged."""
    ours, theirs = FORKSERVER.Pipe(duplex=False)
    child = FORKSERVER.Process(target=target, args=(str(path), theirs, rng.randrange(2**32)))
    child.start()
    theirs.close()
    seen = []
    assert ours.poll(60)
    deadline = time.monotonic() + rng.random() * longest
    while (left := deadline - time.monotonic()) > 0:
        if ours.poll(left):
            seen.append(ours.recv())
    child.kill()
    try:
        while True:
            seen.append(ours.recv())
    except (EOFError, OSError, struct.error):  # a last message may be cut short: then it was not received, so not acknowledged
        pass
    child.join(60)
    assert child.exitcode == -9
    child.close()
    ours.close()
    return seen
