"""Mutation fuzzing of what parses bytes that may come from anywhere: each target takes bytes and may answer with a `SonaError` only.

    python tests/fuzz.py [TARGET ...] [--seconds 60] [--seed 0] [--keep DIRECTORY]

Inputs that reach a line of the package, or an error message, that none did before are kept and mutated further. The same seed gives the
same inputs. What breaks a promise is printed and, with --keep, written down.
"""

import argparse
import io
import json
import os
import random
import re
import struct
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

import sona
from sona import SonaError
from sona.adapters.factors import Factors
from sona.loops.journal import decode_state, encode_state
from sona.replay.lines import BadLines
from sona.replay.log import LoggedDecisions, read_arms
from sona.replay.tables import read_csv, read_npz
from sona.store import load_snapshot, save_snapshot, snapshot
from sona.trajectory._record import decode, encode, measure_record
from sona.types import QueryTrajectory, TrajectoryStep

Target = Callable[[bytes], None]
PACKAGE = str(Path(sona.__file__).parent)
LONGEST = 1 << 16
NUMBERS = [0, 1, 2, 3, 4, 7, 8, 16, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**64 - 1]
WORDS = [
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b",",
    b":",
    b"\n",
    b"null",
    b"true",
    b"-1",
    b"0",
    b"1e400",
    b"1e39",
    b"NaN",
    b"9" * 5000,
    b"[" * 3000,
]
WORDS += [b'"x"', b'"arm"', b'"arms"', b'"reward"', b'"time"', b'"0001-01-01T00:00:00+14:00"', b'"9999-12-31T23:59:59-14:00"', b"\\ud800"]
WORDS += [b'"propensity"', b'"candidates"', b"\xff", b"\x00", b"\xef\xbb\xbf", b"y,", b"__metadata__", b'"shape"', b'"data"', b'"bytes"']


# ---- targets: what they are given at first, and what they promise ----


def a_trajectory(steps: int, d: int = 3) -> bytes:
    ones = np.ones(d, np.float32)
    each = [
        TrajectoryStep(ones * i, ones if i % 2 else None, None if i % 2 else 0.5, float(i), layer=i, x=ones if i % 3 else None)
        for i in range(steps)
    ]
    return encode(QueryTrajectory(id=7, query_embedding=ones, steps=each, final_quality=0.5, latency_us=9))


def trajectory(data: bytes) -> None:
    for record in (data, data[:8] + struct.pack("<I", zlib.crc32(data[12:])) + data[12:]):
        try:
            measured = measure_record(record)
        except SonaError:
            measured = None
        try:
            found = decode(record)
        except SonaError:
            continue
        assert measured == (len(found.query_embedding), len(found.steps))
        again = encode(found)
        assert len(again) == len(record)
        assert encode(decode(again)) == again


def some_factors(rank: int, dim: int) -> bytes:
    rows = np.arange(rank * dim, dtype=np.float32).reshape(rank, dim)
    return Factors(rows, -rows, np.ones(rank, np.float32)).to_bytes()


def factors(data: bytes) -> None:
    found = Factors.from_bytes(data)
    assert found.to_bytes() == data


def state(data: bytes) -> None:
    arrays, meta = decode_state(data)
    assert isinstance(arrays, dict)
    assert decode_state(encode_state(arrays, meta))[1] == meta


class InFile:
    """A target that reads the bytes from a file."""

    def __init__(self, read: Callable[[Path], Any], suffix: str) -> None:
        self.read = read
        self.directory = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
        self.path = self.directory / f"input{suffix}"

    def __call__(self, data: bytes) -> None:
        self.path.write_bytes(data)
        self.read(self.path)


def logged(path: Path) -> None:
    for skip in (True, False):
        log = LoggedDecisions(path, skip_bad=skip)
        shape = log.scan()
        assert len(list(log.rows())) == shape.rows


class Manifest:
    """A manifest beside sound data: as it is, and with its checksum made right."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
        arrays = {"up": np.ones((2, 3), np.float32), "n": np.arange(4)}
        save_snapshot(self.directory, arrays, {"a": [1, None, "b"]}, fingerprint="m")
        self.seed = (self.directory / "manifest.json").read_bytes()

    def __call__(self, data: bytes) -> None:
        texts = [data]
        try:
            manifest = json.loads(data)
            del manifest["sha256"]
            texts.append(snapshot._seal(manifest))
        except (ValueError, TypeError, KeyError, RecursionError, SonaError, AttributeError):
            pass
        for text in texts:
            (self.directory / "manifest.json").write_bytes(text)
            try:
                load_snapshot(self.directory)
            except SonaError:
                continue


def npz(**arrays: Any) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


def targets() -> dict[str, tuple[Target, list[bytes]]]:
    manifest = Manifest()
    rows = [
        {"x": [0.5, 1], "arm": a, "reward": 1, "propensity": 0.5, "candidates": ["a", "b"], "time": "2024-01-01T00:00:00Z"} for a in "ab"
    ]
    lines = "\n".join(map(json.dumps, [{"arms": {"a": [1, 0], "b": [0, 1]}}, *rows])).encode()
    x, y = np.arange(12.0).reshape(6, 2), np.array([0, 1] * 3)
    return {
        "trajectory": (trajectory, [a_trajectory(0), a_trajectory(1), a_trajectory(4)]),
        "factors": (factors, [some_factors(0, 1), some_factors(2, 3)]),
        "state": (state, [encode_state({"a": np.ones(3), "b": np.zeros((0, 2), np.float32)}, {"k": [1, {"n": None}]})]),
        "manifest": (manifest, [manifest.seed]),
        "log": (InFile(logged, ".jsonl"), [lines, lines.split(b"\n", 1)[1]]),
        "arms": (InFile(read_arms, ".json"), [b'{"a": [1, 0], "b": [0, 1]}']),
        "npz": (
            InFile(lambda path: read_npz(path, BadLines(path, skip=True)), ".npz"),
            [npz(X=x, y=y), npz(X=x, y=y.astype(str), z=x), npz(X=x, y=y * 1e300)],
        ),
        "csv": (
            InFile(lambda path: read_csv(path, BadLines(path, skip=True)), ".csv"),
            [b"u,v,y\n1,2,a\n3,4,b\n", b'"u",y\n"1",a\n2,"b"\n'],
        ),
    }


# ---- mutation ----


def mutated(random_: random.Random, data: bytes, other: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(1 + random_.getrandbits(2)):
        at = random_.randrange(len(out) + 1)
        size = random_.choice((1, 2, 4, 8))
        match random_.randrange(8):
            case 0 if at < len(out):
                out[at] ^= 1 << random_.randrange(8)
            case 1 if at < len(out):
                out[at] = random_.randrange(256)
            case 2:
                out[at : at + size] = (random_.choice(NUMBERS) & ((1 << 8 * size) - 1)).to_bytes(size, "little")
            case 3:
                del out[at : at + random_.choice((1, 4, 16, len(out)))]
            case 4:
                out[at:at] = out[at : at + random_.choice((1, 4, 16, 64))] * random_.choice((1, 2, 8))
            case 5:
                start = random_.randrange(len(other) + 1)
                out[at : at + random_.choice((0, size))] = other[start : start + random_.choice((4, 16, 64, len(other)))]
            case 6:
                out[at : at + random_.choice((0, size, 4 * size))] = random_.choice(WORDS)
            case 7:
                out[at:] = b""
    return bytes(out[:LONGEST])


class Coverage:
    """Lines of the package that a call reaches, and its answer."""

    def __init__(self) -> None:
        self.known: set[object] = set()
        self._reached: set[object] = set()

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        self._reached.add((frame.f_code, frame.f_lineno))
        return self._line

    def run(self, target: Target, data: bytes) -> bool:
        """Whether something new was reached; raises what the target should not have."""
        self._reached = set()
        before = sys.gettrace()
        sys.settrace(self._call)
        try:
            target(data)
        except SonaError as error:
            self._reached.add((type(error), re.sub(r"\d+|'.*'|/\S+", "", str(error))[:60]))
        finally:
            sys.settrace(before)
        new = not self._reached <= self.known
        self.known |= self._reached
        return new


def fuzz(name: str, seconds: float, seed: int = 0, keep: Path | None = None) -> tuple[int, int]:
    """(runs, inputs kept) after that time; whatever is not a `SonaError` is raised, with the input in a note."""
    target, corpus = targets()[name]
    random_, coverage = random.Random(f"{name} {seed}"), Coverage()
    end = time.monotonic() + seconds
    runs = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "", sona.SonaWarning)
        while time.monotonic() < end or runs < len(corpus):
            data = corpus[runs] if runs < len(corpus) else mutated(random_, random_.choice(corpus[-200:]), random_.choice(corpus))
            runs += 1
            try:
                if coverage.run(target, data):
                    corpus.append(data)
            except Exception as error:
                error.add_note(f"{name}, run {runs}, seed {seed}: {len(data)} bytes {data[:400]!r}")
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{name}-{runs}").write_bytes(data)
                raise
    return runs, len(corpus)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("targets", nargs="*", default=list(targets()))
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    for name in options.targets:
        runs, kept = fuzz(name, options.seconds, options.seed, options.keep)
        print(f"{name}: {runs} runs, {kept} kept, nothing found", flush=True)


if __name__ == "__main__":
    main()
