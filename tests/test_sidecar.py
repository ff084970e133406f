"""Promises of ``sona learn``: what a process commits is learned once, whoever is killed, and readers see whole publications in order."""

import errno
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from fake_ring import feedback, trajectory

import sona
from sona import Adapter, SonaConfig, SonaEngine
from sona.errors import SonaClosedError, SonaCorruptError, SonaStoreError, SonaValueError, SonaVersionError
from sona.sidecar import SharedRing, Sidecar, SidecarConfig, Weights, fingerprint_of
from sona.sidecar.run import max_rank
from sona.sidecar.saver import Saver
from sona.sidecar.text import StatusLine, line, text
from sona.store import SqliteStore

ROOT = Path(__file__).parents[1]
DIM = 8
CONFIG = SonaConfig.ephemeral(hidden_dim=DIM)  # its rank does not grow, so that a restart changes no bit
COMMAND = [sys.executable, "-W", "error", "-c", "from sona.cli import main; raise SystemExit(main())", "learn"]


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory for files that processes map."""
    return tmp_path


class Place:
    """A ring, weights and a store, and the command over them."""

    def __init__(self, directory: Path, *options: str, dim: int = DIM) -> None:
        self.ring, self.weights, self.store = directory / "ring", directory / "weights", directory / "sona.db"
        self.command = [*COMMAND, "--ring", str(self.ring), "--weights", str(self.weights), "--store", str(self.store)]
        self.command += ["--dim", str(dim), "--preset", "ephemeral", "--json", *options]
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *options: str) -> "subprocess.Popen[str]":
        path = os.pathsep.join(filter(None, [str(Path(sona.__file__).parent.parent), os.environ.get("PYTHONPATH")]))
        process = subprocess.Popen(
            [*self.command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
        )
        self.started.append(process)
        return process

    def end(self, process: "subprocess.Popen[str]", how: int = signal.SIGTERM) -> dict[str, Any]:
        process.send_signal(how)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        report: dict[str, Any] = json.loads(out)
        return report

    def once(self) -> dict[str, Any]:
        out, err = (process := self.start("--once")).communicate(timeout=60)
        assert process.returncode == 0, err
        report: dict[str, Any] = json.loads(out)
        return report

    def close(self) -> None:
        for process in self.started:
            process.kill()
            process.communicate()


@pytest.fixture
def place(shared: Path) -> Iterator[Place]:
    found = Place(shared)
    yield found
    found.close()


def eventually(true: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    give_up = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < give_up, what
        time.sleep(0.002)


def reader_of(path: Path, dim: int = DIM) -> Weights:
    """Of weights that are being made: until they are, there is no such file."""
    give_up = time.monotonic() + 30
    while True:
        try:
            return Weights.reader(path, layers=1, dim=dim)
        except SonaStoreError as error:
            if error.errno != errno.ENOENT or time.monotonic() > give_up:
                raise
            time.sleep(0.002)


def producer_of(place: Place, capacity: int = 1 << 20) -> SharedRing:
    return SharedRing(place.ring, "producer", capacity)


def learned(engine: SonaEngine) -> list[tuple[str, bytes]]:
    return [(name, array.tobytes()) for name, array in engine.state().items() if name.startswith("layer")]


def model_of(messages: list[tuple[int, bytes]], config: SonaConfig = CONFIG) -> SonaEngine:
    """An engine that has learned these messages of a ring, one after the other."""
    model = SonaEngine(SonaConfig(**(config.as_dict() | {"trajectory_capacity": 100_000})))
    for sequence, data in messages:
        teach(model, sequence, data)
    return model


def teach(model: SonaEngine, sequence: int, data: bytes) -> None:
    if data[:4] == b"SFBK":
        assert model.feedback(int.from_bytes(data[8:16], "little"), float(np.frombuffer(data, "<f8", 1, 16)[0]))
    else:
        assert model.record(data, sequence)


def stored(place: Place, config: SonaConfig = CONFIG) -> list[tuple[str, bytes]]:
    with SonaEngine(config, store=place.store) as engine:
        return learned(engine)


def messages(rng: np.random.Generator, ring: SharedRing, count: int, named: list[int]) -> list[tuple[int, bytes]]:
    """Commit so many; those that found room, with their numbers."""
    done = []
    for _ in range(count):
        if named and rng.random() < 0.5:
            data = feedback(int(rng.choice(named)), float(rng.integers(2)))
            sequence = ring.push(data)
        else:
            data = trajectory(rng, DIM, rewarded=bool(rng.random() < 0.5))
            sequence = ring.push(data)
            if sequence is not None:
                named.append(sequence)
        if sequence is not None:
            done.append((sequence, data))
    return done


# ---- the two files ----


def test_records_go_through_a_ring_and_stay_until_they_are_released(shared: Path) -> None:
    path = shared / "ring"
    with pytest.raises(SonaStoreError, match="No such file"):
        SharedRing(path, "consumer")
    producer, consumer = SharedRing(path, "producer", 4096), SharedRing.consumer(path, 1 << 20)
    assert producer.identity == consumer.identity
    assert (consumer.capacity, consumer.used) == (4096, 0)
    assert [producer.push(bytes([n]) * n) for n in range(5)] == [1, 2, 3, 4, 5]
    assert [consumer.next() for _ in range(3)] == [(b"", 1), (b"\1", 2), (b"\2\2", 3)]
    mark = consumer.mark()
    assert consumer.next() == (b"\3\3\3", 4)
    consumer.release(mark)
    consumer.close()
    consumer = SharedRing(path, "consumer")
    assert [consumer.next() for _ in range(3)] == [(b"\3\3\3", 4), (b"\4" * 4, 5), None]
    while producer.push(bytes(1000)) is not None:
        pass
    assert producer.dropped == 1
    with pytest.raises(SonaValueError, match="a record of 4000 bytes"):
        producer.push(bytes(4000))
    for side in ("producer", "consumer"):
        with pytest.raises(SonaStoreError, match=f"another process is the {side} of this ring"):
            SharedRing(path, side)
    with pytest.raises(SonaValueError):
        SharedRing(path, "producer", 4097)
    with pytest.raises(SonaValueError, match="side: expected 'producer' or 'consumer', got 'both'"):
        SharedRing(path, "both")  # type: ignore[arg-type]
    consumer.close()
    consumer.close()
    with pytest.raises(SonaClosedError, match="the ring is closed"):
        consumer.next()
    (shared / "other").write_bytes(b"x" * 10_000)
    with pytest.raises(SonaCorruptError, match="one that is gone is made anew"):
        SharedRing(shared / "other", "producer", 4096)


def test_layers_are_adopted_by_different_adapters(shared: Path) -> None:
    """Each is filled before any is shown; and a sequence may make what it yields."""
    writer, reader = (
        Weights.writer(shared / "weights", layers=2, dim=DIM, max_rank=4),
        Weights.reader(shared / "weights", layers=2, dim=DIM),
    )
    writer.publish([Adapter(DIM, rank=2) for _ in range(2)])
    adapter = Adapter(DIM, rank=2)
    with pytest.raises(SonaValueError, match="adapters: expected different ones"):
        reader.adopt([adapter, adapter])

    class Fresh:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, layer: int) -> Adapter:
            if layer < 2:
                return Adapter(DIM, rank=2)
            raise IndexError(layer)

    info = reader.adopt(cast(Sequence[Adapter], Fresh()))
    assert info is not None
    assert info[0] == 1


def test_weights_are_adopted_as_they_were_published(shared: Path, rng: np.random.Generator) -> None:
    path = shared / "weights"
    engine = model_of([(n + 1, trajectory(rng, DIM)) for n in range(20)])
    shape = {"layers": 1, "dim": DIM}
    writer = Weights.writer(path, max_rank=max_rank(CONFIG), fingerprint=7, **shape)
    reader = Weights.reader(path, **shape)
    adapter, x = Adapter(DIM, rank=2), rng.normal(size=DIM).astype(np.float32)
    assert reader.epoch == 0
    assert reader.adopt([adapter]) is None
    before = time.monotonic_ns()
    writer.publish(engine.adapters, 3)
    info = reader.adopt([adapter])
    assert info is not None
    assert info[:2] == (1, 3) == (reader.epoch, 3)
    assert before <= info[2] <= time.monotonic_ns()
    np.testing.assert_allclose(adapter.apply(x), engine.apply(x), atol=1e-5)
    with pytest.raises(SonaValueError, match="adapters: expected 1, got 2"):
        writer.publish([adapter, adapter])
    with pytest.raises(SonaStoreError, match="another process writes these weights"):
        Weights.writer(path, max_rank=max_rank(CONFIG), fingerprint=7, **shape)
    for options in ({**shape, "fingerprint": 8}, {"layers": 2, "dim": DIM}, {"layers": 1, "dim": DIM + 1}):
        with pytest.raises(SonaVersionError, match="got the weights of others"):
            Weights.reader(path, **options)
    writer.close()
    with pytest.raises(SonaClosedError, match="the weights are closed"):
        writer.publish(engine.adapters)


def test_the_bound_on_rows_is_never_met(shared: Path, rng: np.random.Generator) -> None:
    for config in (SonaConfig(hidden_dim=DIM), SonaConfig.edge(hidden_dim=DIM), SonaConfig.max_quality(hidden_dim=100), CONFIG):
        engine, most = SonaEngine(config), 0
        for _ in range(400):
            engine.record(trajectory(rng, config.hidden_dim), int(rng.integers(1 << 60)))
            most = max(most, engine.adapters[0].info()["total"])
        assert most <= max_rank(config)


# ---- one process ----


class Running:
    """A sidecar in a thread."""

    def __init__(self, directory: Path, **options: Any) -> None:
        config = SidecarConfig(**({"engine": CONFIG, "save_every": 0.02, "cycles": False} | options))
        self.ring = SharedRing(directory / "ring", "producer", 1 << 16)
        self.sidecar = Sidecar(directory / "ring", store=directory / "sona.db", weights=directory / "weights", config=config)
        self.reports: list[dict[str, Any]] = []
        self.thread = threading.Thread(target=lambda: self.reports.append(self.sidecar.run()))
        self.thread.start()

    def until(self, true: Callable[[dict[str, Any]], bool]) -> None:
        eventually(lambda: bool((report := self.sidecar.report()).get("ring")) and true(report), str(self.sidecar.report()))

    def __enter__(self) -> "Running":
        self.until(lambda report: True)
        return self

    def __exit__(self, *_: object) -> None:
        self.sidecar.stop()
        self.thread.join(60)


def test_while_the_store_fails_weights_go_on_and_the_ring_keeps_everything(
    shared: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sona.sidecar.saver.FIRST_RETRY", 0.01)
    monkeypatch.setattr("sona.sidecar.saver.LONGEST_RETRY", 0.05)
    put = SqliteStore.put_state
    with Running(shared) as running:
        done = messages(rng, running.ring, 10, [])
        running.until(lambda report: report["saves"] > 0 and report["ring"]["used"] == 0)
        monkeypatch.setattr(SqliteStore, "put_state", _full)
        more = messages(rng, running.ring, 20, [sequence for sequence, data in done if data[:4] != b"SFBK"])
        running.until(lambda report: report["trajectories"] + report["feedback"] == 30 and report["save_failures"] > 2)
        assert "disk is full" in running.sidecar.report()["store_error"]
        reader, adapter = reader_of(shared / "weights"), Adapter(DIM, rank=8)
        assert reader.adopt([adapter]) is not None
        x = rng.normal(size=DIM).astype(np.float32)
        np.testing.assert_allclose(adapter.apply(x), model_of(done + more).apply(x), atol=1e-6)
        assert running.ring.used > 0
        while running.ring.push(bytes(1000)) is not None:  # it fills, and the producer counts
            pass
        assert running.ring.dropped == 1
        monkeypatch.setattr(SqliteStore, "put_state", put)
        running.until(lambda report: report["ring"]["used"] == 0)
    assert stored(Place(shared)) == learned(model_of(done + more))


def test_what_cannot_be_saved_at_the_end_is_still_in_the_ring(
    shared: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = SharedRing(shared / "ring", "producer", 1 << 16)
    sidecar = Sidecar(shared / "ring", store=shared / "sona.db", weights=shared / "weights", config=SidecarConfig(engine=CONFIG))
    sidecar.run(once=True)
    done = messages(rng, ring, 20, [])
    with monkeypatch.context() as patch:
        patch.setattr(SqliteStore, "append", _full)
        with pytest.raises(SonaStoreError, match="disk is full"):
            sidecar.run(once=True)
    assert ring.used > 0
    assert sidecar.run(once=True)["again"] == 20  # the state was written, the rows were not
    assert ring.used == 0
    assert stored(Place(shared)) == learned(model_of(done))
    with SqliteStore(shared / "sona.db") as store:
        assert sum(1 for _ in store.trajectories()) == sum(data[:4] != b"SFBK" for _, data in done)


def _full(*_: Any, **__: Any) -> None:
    raise SonaStoreError("database or disk is full")


def test_rewards_that_other_processes_bring_to_the_store_are_published(shared: Path, rng: np.random.Generator) -> None:
    with Running(shared) as running:
        running.ring.push(trajectory(rng, DIM, rewarded=False))
        running.until(lambda report: report["saves"] > 0 and report["ring"]["used"] == 0)
        epoch = running.sidecar.report()["epoch"]
        with SonaEngine(CONFIG, store=shared / "sona.db") as other:
            assert other.store is not None
            (row,) = other.store.trajectories()
            assert other.feedback(row.id, 1.0)
        running.until(lambda report: report["epoch"] > epoch)
        reader, adapter = reader_of(shared / "weights"), Adapter(DIM, rank=8)
        reader.adopt([adapter])
        assert np.abs(adapter.delta()).max() > 0


def test_a_file_that_is_replaced_is_left_for_the_new_one(shared: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sona.sidecar.run.LOOK_EVERY", 0.02)
    with Running(shared) as running:
        old = messages(rng, running.ring, 10, [])
        os.rename(shared / "ring", shared / "old")
        new = SharedRing(shared / "ring", "producer", 1 << 15)
        new.push(trajectory(rng, DIM))
        running.until(lambda report: report["ring"]["capacity"] == 1 << 15)
        more = messages(rng, new, 10, [])
        os.remove(shared / "weights")
        eventually((shared / "weights").exists, "new weights")
        running.until(lambda report: report["trajectories"] + report["feedback"] == 21)
    assert len(running.reports) == 1
    with SqliteStore(shared / "sona.db") as store:
        records = [one for one in (*old, *more) if one[1][:4] != b"SFBK"]
        assert sum(1 for _ in store.trajectories()) == len(records) + 1


def test_a_save_that_fails_is_tried_again_at_growing_intervals() -> None:
    now, tries = [0.0], [0]

    def save() -> None:
        tries[0] += 1
        if tries[0] < 8:
            raise SonaStoreError("away")

    saver = Saver(save, clock=lambda: now[0])
    pauses = []
    for mark in range(8):
        assert saver.ready
        saver.begin(mark)
        saver.wait()
        began = now[0]
        while not saver.ready and saver.ended() is None:
            now[0] += 0.25
        pauses.append(now[0] - began)
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 0]
    assert (saver.saves, saver.failures, saver.last_error) == (1, 7, None)
    saver.close()


def test_bad_options_are_refused(shared: Path) -> None:
    for options in ({"capacity": 4095}, {"capacity": 5000}, {"poll": -1.0}, {"save_every": float("inf")}):
        with pytest.raises(SonaValueError, match="expected"):
            SidecarConfig(engine=CONFIG, **options)
    assert fingerprint_of(None) == 0
    assert fingerprint_of("m") == 0x310CD75D7A6AC662


def test_a_sidecar_that_may_not_learn_says_so(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SONA_DISABLE", "1")
    with pytest.raises(SonaValueError, match="SONA_DISABLE=1"):
        Sidecar(shared / "ring", store=shared / "sona.db", weights=shared / "weights", config=SidecarConfig(engine=CONFIG)).run(once=True)


REPORT = {
    "seconds": 2.0,
    "trajectories": 10,
    "feedback": 4,
    "again": 1,
    "saves": 2,
    "bad": {"value": 1, "corrupt": 2},
    "owed": 5,
    "ring": {"used": 64, "capacity": 256, "dropped": 6, "damaged": 1},
    "epoch": 7,
    "store_error": "disk full",
}


def test_before_anything_is_open_there_is_something_to_say(shared: Path) -> None:
    sidecar = Sidecar(shared / "ring", store=shared / "sona.db", weights=shared / "weights", config=SidecarConfig(engine=CONFIG))
    assert line(sidecar.report()) == "nothing is open yet"
    assert "0.0 s" in text(sidecar.report())


def test_what_went_wrong_is_said() -> None:
    for part in ("10 trajectories, 4 rewards, epoch 7, ring 25% full", "3 bad", "6 dropped", "5 waiting for the store", "NOT SAVED"):
        assert part in line(REPORT)
    assert "bad records: 2 corrupt, 1 value" in text(REPORT)
    assert "damaged 1 times" in text(REPORT)
    well = REPORT | {"bad": {}, "owed": 0, "store_error": None, "ring": REPORT["ring"] | {"dropped": 0, "damaged": 0}}  # type: ignore[operator]
    assert line(well) == "10 trajectories, 4 rewards, epoch 7, ring 25% full"
    assert text(well).count("\n") == 1


@pytest.mark.parametrize("terminal", [True, False])
def test_the_status_line_is_for_terminals(terminal: bool) -> None:
    stream = io.StringIO()
    stream.isatty = lambda: terminal  # type: ignore[method-assign]
    with StatusLine(stream) as status:
        status.update(REPORT)
        status.update(REPORT)
    assert stream.getvalue().count("\r") == 2 * terminal
    assert stream.getvalue().count("\n") == terminal


# ---- processes ----


def test_the_command_learns_publishes_and_ends_on_a_signal(place: Place, rng: np.random.Generator) -> None:
    producer = producer_of(place)
    process = place.start()
    done = messages(rng, producer, 50, named := [])
    reader, adapter = reader_of(place.weights), Adapter(DIM, rank=8)
    x = rng.normal(size=DIM).astype(np.float32)

    def adopted() -> bool:
        reader.adopt([adapter])
        return bool(np.allclose(adapter.apply(x), model_of(done).apply(x), atol=1e-6))

    eventually(adopted, "the weights of everything that was committed")
    done += messages(rng, producer, 10, named)
    eventually(adopted, "the weights of what came later")
    out, err = (second := place.start()).communicate(timeout=60)
    assert second.returncode == 1
    assert (out, err.count("\n")) == ("", 1)
    assert "another process is the consumer of this ring" in err
    report = place.end(process)
    assert report["trajectories"] + report["feedback"] == 60
    assert (report["bad"], report["ring"]["used"], report["store_error"]) == ({}, 0, None)
    done += messages(rng, producer, 10, named)
    again = place.once()
    assert (again["trajectories"] + again["feedback"], again["again"]) == (10, 0)
    assert stored(place) == learned(model_of(done))


def test_a_store_that_another_process_learns_for_is_an_error(place: Place) -> None:
    with SonaEngine(CONFIG, store=place.store):
        out, err = (process := place.start("--once")).communicate(timeout=60)
    assert process.returncode == 1
    assert (out, err.count("\n")) == ("", 1)
    assert "another process does" in err


def test_what_belongs_to_another_model_is_an_error(place: Place) -> None:
    place.command += ["--fingerprint", "one"]
    place.once()
    for change, reason in ((["--fingerprint", "two"], "the model"), (["--dim", "9"], "of dim 9, got ")):
        out, err = (process := place.start("--once", *change)).communicate(timeout=60)
        assert process.returncode == 1
        assert reason in err
        assert out == ""


class Watcher(threading.Thread):
    """A reader that adopts whatever is published, and remembers its bytes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.ending = path, threading.Event()
        self.seen: list[tuple[int, bytes]] = []
        self.failed: BaseException | None = None

    def run(self) -> None:
        try:
            reader, adapter = reader_of(self.path), Adapter(DIM, rank=8)
            while not self.ending.wait(0.0005):
                info = reader.adopt([adapter])
                if info is not None and (not self.seen or info[0] != self.seen[-1][0]):
                    self.seen.append((info[0], rows(adapter)))
        except BaseException as error:
            self.failed = error


def rows(adapter: Adapter) -> bytes:
    return b"".join(part.tobytes() for part in adapter.rows())


def prefixes(directory: Path, done: list[tuple[int, bytes]]) -> dict[bytes, list[int]]:
    """What a reader has after each number of messages: the bytes, and the numbers."""
    writer = Weights.writer(directory / "model", layers=1, dim=DIM, max_rank=max_rank(CONFIG))
    reader, adapter = Weights.reader(directory / "model", layers=1, dim=DIM), Adapter(DIM, rank=8)
    model = model_of([])
    found: dict[bytes, list[int]] = {}
    for count in range(len(done) + 1):
        if count:
            teach(model, *done[count - 1])
        writer.publish(model.adapters)
        assert reader.adopt([adapter]) is not None
        found.setdefault(rows(adapter), []).append(count)
    return found


def kill_sidecars(place: Place, kills: int, seed: int, longest: float) -> None:
    rng, when = np.random.default_rng(seed), random.Random(seed)
    producer, named, done = producer_of(place), [], []
    watcher = Watcher(place.weights)
    watcher.start()
    for _ in range(kills):
        process = place.start("--save", "0.01")
        done += messages(rng, producer, when.randrange(20), named)  # while it starts
        eventually(lambda: watcher.seen != [], "a first publication")
        deadline = time.monotonic() + when.random() * longest
        while time.monotonic() < deadline:
            done += messages(rng, producer, when.randrange(1, 4), named)
            time.sleep(when.random() * 0.005)
        assert process.poll() is None, process.communicate()
        process.kill()
        process.communicate()
    report = place.once()
    watcher.ending.set()
    watcher.join()
    assert watcher.failed is None
    assert producer.dropped == report["ring"]["used"] == 0
    assert report["bad"] == {}
    assert stored(place) == learned(model_of(done))  # nothing is lost, and nothing learned twice
    known = prefixes(place.ring.parent, done)
    last = (0, 0)
    for epoch, seen in watcher.seen:  # each publication is whole, and has what those before it had
        assert epoch > last[0]
        assert seen in known
        last = epoch, min(count for count in known[seen] if count >= last[1])
    assert len(watcher.seen) >= kills


def test_kills_of_the_sidecar_lose_nothing_and_teach_nothing_twice(place: Place) -> None:
    kill_sidecars(place, 4, seed=1, longest=0.8)


@pytest.mark.slow
def test_many_kills_of_the_sidecar(place: Place) -> None:
    kill_sidecars(place, 60, seed=2, longest=1.5)


PRODUCER = """
import sys
import numpy as np
from fake_ring import trajectory
from sona.sidecar import SharedRing
ring = SharedRing(sys.argv[1], "producer", 1 << 20)
rng = np.random.default_rng(int(sys.argv[2]))
with open(sys.argv[3], "w") as told:
    while True:
        sequence = ring.push(trajectory(rng, 8))
        if sequence is not None:
            print(sequence, file=told, flush=True)
"""


def kill_producers(place: Place, start_python: Callable[..., Any], kills: int, seed: int) -> None:
    when = random.Random(seed)
    producer_of(place).close()  # of its capacity, whoever of them comes first
    sidecar = place.start("--save", "0.05")
    committed: list[int] = []
    for n in range(kills):
        told = place.ring.parent / f"told{n}"
        producer = start_python(PRODUCER, place.ring, n, told)
        eventually(lambda told=told: told.exists() and told.stat().st_size > 0, "a first record")  # type: ignore[misc]
        time.sleep(when.random() * 0.05)
        producer.kill()
        _, err = producer.communicate()
        assert producer.returncode == -9, err
        committed += [int(line) for line in told.read_text().split("\n")[:-1]]
    report = place.end(sidecar)
    assert committed == sorted(set(committed))
    assert len(committed) > kills
    assert report["bad"] == {}
    with SqliteStore(place.store) as store:
        kept = {row.id: row.payload for row in store.trajectories()}
    base = min(kept) - committed[0]
    assert {base + sequence for sequence in committed} <= kept.keys()
    assert len(committed) <= len(kept) <= len(committed) + kills  # the last of each may not have been told
    assert stored(place) == learned(model_of([(id, payload) for id, payload in sorted(kept.items())]))


def test_kills_of_the_producer_lose_nothing_that_it_committed(place: Place, start_python: Callable[..., Any]) -> None:
    kill_producers(place, start_python, 3, seed=1)


@pytest.mark.slow
def test_many_kills_of_the_producer(place: Place, start_python: Callable[..., Any]) -> None:
    kill_producers(place, start_python, 40, seed=2)


# ---- C ----


def test_the_documented_c_program_is_heard(place: Place, rng: np.random.Generator) -> None:
    library = next(iter(sorted(ROOT.glob("build/**/libsona.a"))), None)
    if library is None:
        pytest.skip("libsona.a was not built here")
    (program_text,) = re.findall(r"^```c\n(.*?)^```$", (ROOT / "docs" / "sidecar.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    source, program = place.ring.parent / "program.c", place.ring.parent / "program"
    source.write_text(program_text, encoding="utf-8")
    build = ["cc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-I", str(ROOT / "csrc" / "include"), str(source), str(library)]
    subprocess.run([*build, "-lm", "-lpthread", "-o", str(program)], check=True, timeout=120)
    sidecar = place.start("--dim", "4")
    reader_of(place.weights, dim=4)
    done = subprocess.run([program, place.ring, place.weights], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"epoch \d+: \+0\.\d+\n", done.stdout), done.stdout
    report = place.end(sidecar)
    assert (report["trajectories"], report["feedback"]) == (1, 1)
