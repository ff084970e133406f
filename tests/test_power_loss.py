"""Power loss: what a process had synced is there, of the rest any part may be, and nothing acknowledged is lost."""

import random
import re
import shutil
import subprocess
import sys
import textwrap
from collections import defaultdict
from pathlib import Path

import pytest

import sona
from sona import SqliteStore

SECTOR = 512
ACKNOWLEDGES = """
    import os, sys
    import numpy as np
    from sona import Router

    router = Router(np.eye(3, 1024), store=sys.argv[1])
    for n, x in enumerate(np.random.default_rng(0).normal(size=(int(sys.argv[2]), 1024))):
        d = router.route(x)
        assert router.feedback(d.id, n % 100 / 100, sync=n % 3 > 0)
        if n % 3:
            os.write(1, b"%d %d\\n" % (d.id, n % 100))
    router.engine.save(sys.argv[1] + ".snapshot")
    router.background_learn()
    router.close()
"""
CALL = re.compile(r"(?P<pid>\d+) +(?P<name>\w+)\((?P<fd>\d+)<(?P<path>[^>]*)>(?P<rest>.*)", re.DOTALL)
RESUMED = re.compile(r"(?P<pid>\d+) +<\.\.\. (?P<name>\w+) resumed>.*= 0$")
REMOVED = re.compile(r"\d+ +unlink(?:at)?\(.*?(?P<path>\"(?:\\x[0-9a-f]{2})*\").* = 0$")
TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


def unhexed(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


class Disk:
    """What the calls of a process, in the order in which strace saw them, leave on a disk that keeps its word."""

    def __init__(self) -> None:
        self.durable: dict[str, bytearray] = defaultdict(bytearray)
        self.pending: dict[str, list[tuple[int, bytes | None]]] = defaultdict(list)  # (offset, data), or (length, None): cut to it
        self.syncs = 0
        self._waits: dict[str, str] = {}  # a sync that has begun, by thread

    def call(self, line: str) -> bytes:
        """Take in a line of the trace; what it wrote to stdout."""
        if (resumed := RESUMED.match(line)) and (path := self._waits.pop(resumed["pid"], None)):
            self._sync(path)
        if removed := REMOVED.match(line):
            path = Path(unhexed(removed["path"].strip('"')).decode()).name
            self.durable.pop(path, None)
            self.pending.pop(path, None)
        if not (found := CALL.match(line)):
            return b""
        path, rest = Path(unhexed(found["path"]).decode() if found["path"].startswith("\\x") else found["path"]).name, found["rest"]
        if found["name"] in ("fsync", "fdatasync"):
            if "unfinished" in rest:
                self._waits[found["pid"]] = path
            elif rest.endswith("= 0"):
                self._sync(path)
        elif found["name"] == "ftruncate":
            self.pending[path].append((int(rest.split(",")[1].split(")")[0].split("<")[0]), None))
        elif found["name"] == "pwrite64":
            text = TEXT.search(rest)
            assert text is not None
            offset = int(rest[text.end() :].split(",")[2].split(")")[0].split("<")[0])
            self.pending[path].append((offset, unhexed(text[1])))
        elif found["fd"] == "1" and (text := TEXT.search(rest)):
            return unhexed(text[1])
        return b""

    def _sync(self, path: str) -> None:
        self.syncs += 1
        for change in self.pending.pop(path, ()):
            self._apply(self.durable[path], *change)

    @staticmethod
    def _apply(content: bytearray, at: int, data: bytes | None) -> None:
        if data is None:
            del content[at:]
            content.extend(bytes(max(at - len(content), 0)))
        else:
            content.extend(bytes(max(at - len(content), 0)))
            content[at : at + len(data)] = data

    def after_power_loss(self, place: Path, rng: random.Random) -> None:
        """Files as they may be found: sectors that were not synced are there or not, each for itself."""
        for path in {*self.durable, *self.pending}:
            content, keep = bytearray(self.durable[path]), rng.choice((0.0, 0.5, 0.95, 1.0))
            for at, data in self.pending.get(path, ()):
                if data is None:
                    if rng.random() < keep:
                        self._apply(content, at, None)
                    continue
                for start in range(0, len(data), SECTOR):
                    if rng.random() < keep:
                        self._apply(content, at + start, data[start : start + SECTOR])
            (place / path).write_bytes(content)


def traced(place: Path, rewards: int) -> list[str]:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("needs strace")
    (place / "run").mkdir()
    trace = place / "trace"
    calls = "trace=pwrite64,write,fsync,fdatasync,ftruncate,unlink,unlinkat"
    code = [sys.executable, "-c", textwrap.dedent(ACKNOWLEDGES), str(place / "run" / "s.db"), str(rewards)]
    done = subprocess.run(
        [strace, "-f", "--seccomp-bpf", "-y", "-xx", "-s", "70000", "-e", calls, "-e", "signal=none", "-o", str(trace), *code],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": str(Path(sona.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
    )
    if done.returncode and "ptrace" in done.stderr:
        pytest.skip("this machine lets no process be traced")
    assert done.returncode == 0, done.stderr
    return trace.read_text(encoding="latin-1").splitlines()


@pytest.mark.skipif(sys.platform != "linux", reason="system calls are those of Linux")
@pytest.mark.parametrize(("rewards", "losses"), [(100, 12), pytest.param(2000, 600, marks=pytest.mark.slow)])
def test_power_loss_at_any_moment_loses_nothing_acknowledged(
    rewards: int, losses: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, rng = traced(tmp_path, rewards), random.Random(5)
    ours = [number for number, line in enumerate(lines) if "s.db" in line or "\\x73\\x2e\\x64\\x62" in line or "(1<" in line]
    begins = next(n for n in ours if "(1<" in lines[n])
    moments = sorted(rng.sample([n for n in ours if n >= begins], losses))
    disk, acknowledged, found, unsynced = Disk(), {}, 0, 0
    for number, line in enumerate(lines):
        for said in disk.call(line).decode().splitlines():
            id, hundredths = map(int, said.split())
            acknowledged[id] = hundredths / 100
        if not moments or number != moments[0]:
            continue
        moments.pop(0)
        unsynced += sum(map(len, disk.pending.values()))
        place = tmp_path / f"after-{number}"
        place.mkdir()
        disk.after_power_loss(place, rng)
        with SqliteStore(place / "s.db") as store:
            assert store.integrity() == []
            kept = {row.id: reward for row, reward in store.decisions()}
        assert {id: kept.get(id) for id in acknowledged} == acknowledged
        found += len(acknowledged)
        shutil.rmtree(place)
    assert not moments
    assert found > losses
    assert unsynced > losses  # there was something to lose
    with capsys.disabled():
        print(f"\n{losses} power losses, {disk.syncs} syncs, {unsynced} writes that were not synced: none of {found} rewards lost")
