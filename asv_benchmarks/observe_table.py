"""What does it cost to be watched?  Requests with the log on, cycles with and without spans, a line of JSON.

    python asv_benchmarks/observe_table.py [--rounds 30] [--json FILE]

A request is `route` and `feedback` at 64 numbers and 8 arms with a store: with the log at info as JSON and without it, 500 in turns. A
piece of work that does nothing is run bare, counted, and with a span of OpenTelemetry's SDK that goes to an exporter in memory. Medians
over the rounds, and of ratios within a round; time is processor time of the thread.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from row import print_lines
from table import machine

import sona
from sona.ext.opentelemetry import instrument
from sona.log import JsonFormatter

DIM, ARMS, REQUESTS, PIECES = 64, 8, 500, 500


def us(call: Callable[[], object], times: int) -> float:
    """Processor microseconds of this thread a call."""
    began = time.thread_time()
    for _ in range(times):
        call()
    return (time.thread_time() - began) / times * 1e6


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """What is said at info goes to a file as JSON."""
    logger, handler = logging.getLogger("sona"), logging.FileHandler(path)
    handler.setFormatter(JsonFormatter())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)
    handler.close()


def requests(rounds: int, path: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"silent": [], "logged": []}
    x = np.random.default_rng(0).standard_normal((REQUESTS, DIM)).astype(np.float32)
    with sona.Router(list(range(ARMS)), dim=DIM, store=path / "s.db") as router:
        turns = iter(range(1 << 60))

        def request() -> None:
            router.feedback(router.route(x[next(turns) % REQUESTS]).id, 1.0)

        us(request, REQUESTS)
        for _ in range(rounds):
            found["silent"].append(us(request, REQUESTS))
            with logged(path / "log"):
                found["logged"].append(us(request, REQUESTS))
    return found


def pieces(rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"bare": [], "counted": [], "span": []}
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    result = sona.BackgroundResult(status="completed", verdict="accept", reason="because", trajectories_processed=1000)
    with sona.Router(["a", "b"], dim=2) as router:
        observed = router.engine.observed
        for _ in range(rounds):
            found["bare"].append(us(lambda: result, PIECES))
            found["counted"].append(us(lambda: observed.run("background_cycle", lambda: result), PIECES))
            end = instrument(router, tracer_provider=provider)
            found["span"].append(us(lambda: observed.run("background_cycle", lambda: result), PIECES))
            end()
            exporter.clear()
    return found


def line(rounds: int) -> list[float]:
    record = logging.makeLogRecord({"event": "background.cycle", "status": "completed", "processed": 1000, "elapsed": 0.1, "name": "sona"})
    formatter = JsonFormatter()
    return [us(lambda: formatter.format(record), PIECES) for _ in range(rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        asked = requests(options.rounds, Path(made))
    work, json_line = pieces(options.rounds), line(options.rounds)
    ratio = median(b / a for a, b in zip(asked["silent"], asked["logged"], strict=True))
    about = machine()
    for name, value in about.items():
        print(f"{name}: {value}")
    print()
    print_lines(
        [
            ("what", "CPU us"),
            ("route and feedback, without a log", f"{median(asked['silent']):.1f}"),
            ("the same, log at info as JSON", f"{median(asked['logged']):.1f} ({ratio:.3f} x)"),
            ("a cycle is counted", f"+{median(work['counted']) - median(work['bare']):.1f}"),
            ("a cycle is counted and has a span", f"+{median(work['span']) - median(work['bare']):.1f}"),
            ("a line of JSON", f"{median(json_line):.1f}"),
        ],
    )
    if options.json:
        Path(options.json).write_text(json.dumps({**about, "requests": asked, "work": work, "line": json_line}), encoding="utf-8")


if __name__ == "__main__":
    main()
