"""Every record of a ring is learned exactly once, whenever the sidecar dies: the weights are those of a run without interruption."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_ring import FakeRing, feedback, trajectory

from sona import SonaConfig, SonaEngine
from sona.errors import SonaStoreError
from sona.sidecar.consumer import Consumer
from sona.trajectory import encode

DIM = 8
# rank = rank_max: how far the rank has grown is not in a state, and only what it allows differs after a restart
CONFIG = SonaConfig(hidden_dim=DIM, num_layers=2, base_lora_rank=8, base_lora_rank_max=8, trajectory_capacity=3)


DEATHS = ("before the state", "after the state", "before the rows", "after the rows", "before the release")


class Crash(Exception):
    """The process is gone."""


def learned(engine: SonaEngine) -> list[tuple[str, bytes]]:
    return [(name, array.tobytes()) for name, array in engine.state().items() if name.startswith("layer")]


class Run:
    """A sidecar's consumer over a ring and a store, which dies and comes back; and an engine that learns the same without either."""

    def __init__(self, path: Path, config: SonaConfig = CONFIG) -> None:
        self.path, self.config = path, config
        self.ring = FakeRing()
        self.open()
        self.model = SonaEngine(SonaConfig(**(config.as_dict() | {"trajectory_capacity": 10_000})))
        self.behind: list[tuple[bytes, int]] = []  # for the model
        self.known: set[int] = set()

    def open(self) -> None:
        self.engine = SonaEngine(self.config, store=self.path)
        self.consumer = Consumer(self.engine, self.ring.reopen())

    def crash(self) -> None:
        engine = self.engine
        assert engine.journal is not None
        assert engine.journal.writer is not None
        assert engine.store is not None
        writer = engine.journal.writer
        assert writer._thread is not None
        writer._stopping.set()
        writer._wake.set()
        writer._thread.join()
        writer._disown()
        engine.store.close()  # what the kernel does: the lease is free, and nothing is written
        self.open()

    def push(self, data: bytes) -> int:
        sequence = self.ring.push(data)
        self.behind.append((data, sequence))
        return sequence

    def save(self, die: str = "") -> None:
        """Save and release; with `die` the process ends at that moment. The loop reads on meanwhile, as it does beside the saver."""
        store, mark = self.engine.store, self.ring.mark()
        assert store is not None
        writes = {"put_state": store.put_state, "append": store.append}

        def beside(name: str, before: str, after: str) -> Any:
            def write(*arguments: Any, **options: Any) -> None:
                self.consumer.take(2)
                if die == before:
                    raise Crash
                writes[name](*arguments, **options)
                if die == after:
                    raise Crash

            return write

        store.put_state = beside("put_state", "before the state", "after the state")  # type: ignore[method-assign]
        store.append = beside("append", "before the rows", "after the rows")  # type: ignore[method-assign]
        try:
            self.consumer.save()
        except Crash:
            self.crash()
            return
        finally:
            for name, write in writes.items():
                setattr(store, name, write)
        if die == "before the release":
            self.crash()
            return
        self.ring.release(mark)

    def catch_up(self) -> None:
        """The model learns what the ring has had until now."""
        for data, sequence in self.behind:
            if data[:4] == b"SFBK":
                named, reward = np.frombuffer(data, "<u8", 1, 8)[0], float(np.frombuffer(data, "<f8", 1, 16)[0])
                if int(named) in self.known:
                    assert self.model.feedback(int(named), reward)
            elif self.model.record(data, sequence):
                self.known.add(sequence)
        self.behind.clear()

    def check(self) -> None:
        """Everything that is in the ring has been learned, once."""
        while self.consumer.take(64):
            pass
        assert self.consumer.settle()
        self.catch_up()
        assert learned(self.engine) == learned(self.model)

    def check_rows(self) -> None:
        """After a save: each trajectory is in the store, and the last reward of each is the last that the ring had."""
        store = self.engine.store
        assert store is not None
        for sequence in self.known:
            assert store.trajectory(self.consumer.id_of(sequence)) is not None


@pytest.mark.parametrize("seed", range(24))
def test_any_interleaving_is_a_run_without_interruption(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    run = Run(tmp_path / "sona.db")
    last: dict[int, float] = {}
    pushed: list[int] = []
    for _ in range(60):
        move = rng.choice(["trajectory", "feedback", "take", "save", "crash", "gap"], p=[0.3, 0.3, 0.2, 0.1, 0.08, 0.02])
        if move == "trajectory":
            rewarded = bool(rng.random() < 0.5)
            pushed.append(run.push(trajectory(rng, DIM, steps=int(rng.integers(1, 4)), rewarded=rewarded, layers=2)))
        elif move == "feedback" and pushed:
            named = int(rng.choice(pushed))
            last[named] = float(np.float32(rng.choice([0.0, 0.25, 1.0])))
            for _ in range(int(rng.choice([1, 1, 2]))):  # a repeated one changes nothing
                run.push(feedback(named, last[named]))
        elif move == "take":
            run.consumer.take(int(rng.integers(1, 9)))
        elif move == "save":
            run.save(str(rng.choice(["", "", *DEATHS])))
        elif move == "crash":
            run.crash()
        elif move == "gap":
            run.ring.skip()
    run.check()
    run.save()
    run.check_rows()
    assert run.engine.store is not None
    for named, reward in last.items():
        assert run.engine.store.reward(run.consumer.id_of(named)) == reward
    run.crash()
    run.check()  # and nothing is left to learn
    assert run.ring.waiting == []
    run.engine.close()


def test_what_was_released_before_a_crash_is_revised_from_the_store(tmp_path: Path, rng: np.random.Generator) -> None:
    run = Run(tmp_path / "sona.db")
    first = run.push(trajectory(rng, DIM))
    for _ in range(10):
        run.push(trajectory(rng, DIM))
    run.consumer.take(64)
    run.save()
    run.crash()
    run.push(feedback(first, 0.0))
    run.push(feedback(first, 1.0))
    run.check()
    assert run.consumer.feedback == 2
    run.save()
    run.crash()
    run.push(feedback(first, 0.25))
    run.check()
    run.engine.close()


def test_bad_records_are_counted_and_move_nothing(tmp_path: Path, rng: np.random.Generator) -> None:
    run = Run(tmp_path / "sona.db")
    good = trajectory(rng, DIM)
    sequence = run.push(good)
    run.consumer.take(1)
    before = learned(run.engine)
    patched = bytearray(good)
    patched[48:52] = np.float32(np.nan).tobytes()
    newer = bytearray(good)
    newer[12] = 2
    deep = trajectory(rng, DIM, layers=1)
    deep = bytearray(deep)
    deep[48 + 4 * DIM + 24] = 2
    sealed = bytearray(good)
    sealed[8:12] = b"oops"
    for data in (
        b"",
        b"SFBK",
        b"STRJ",
        good[:-1],
        good + b"\0",
        bytes(rng.bytes(100)),
        bytes(sealed),
        bytes(newer),
        trajectory(rng, DIM + 1),
        bytes(patched),
        bytes(deep),
        feedback(sequence, math.nan),
        feedback(sequence, 1.5),
        feedback(sequence, 0.5) + b"\0",
        feedback(0, 0.5),
        feedback(sequence + 1, 0.5),
        feedback(1 << 63, 0.5),
    ):
        run.ring.push(data)
    while run.consumer.take(5):
        pass
    assert learned(run.engine) == before
    assert run.consumer.bad == {"corrupt": 8, "version": 1, "dimension": 1, "value": 4, "unknown": 3}
    run.save()
    assert run.ring.waiting == []
    run.ring.push(feedback(sequence, 0.0))
    run.consumer.take(1)
    assert learned(run.engine) != before
    run.engine.close()


@pytest.mark.parametrize("when", ["", "before the release", "no crash"])
def test_feedback_waits_for_a_store_that_cannot_be_read(when: str, tmp_path: Path, rng: np.random.Generator) -> None:
    run = Run(tmp_path / "sona.db")
    sequence = run.push(trajectory(rng, DIM))
    for _ in range(5):
        run.push(trajectory(rng, DIM))
    run.consumer.take(64)
    run.save()
    store = run.engine.store
    assert store is not None
    read, store.trajectory = store.trajectory, _refuse  # type: ignore[method-assign]
    run.ring.push(feedback(sequence, 0.0))
    run.ring.push(feedback(sequence, 1.0))
    run.push(trajectory(rng, DIM))  # and learning goes on
    run.consumer.take(64)
    assert (run.consumer.owed, run.consumer.trajectories, run.consumer.feedback) == (1, 7, 0)
    assert not run.consumer.settle()
    if when == "no crash":
        store.trajectory = read  # type: ignore[method-assign]
    else:
        run.save(when)  # what is owed is in the state
        run.crash()
        assert run.consumer.owed == 1
        while run.consumer.take(64):
            pass
    assert run.consumer.settle()
    assert run.consumer.owed == 0
    run.behind.append((feedback(sequence, 1.0), 0))  # later than it came, and only the last one
    run.check()
    run.save()
    assert run.engine.store is not None
    assert run.engine.store.reward(run.consumer.id_of(sequence)) == 1.0
    run.engine.close()


def _refuse(*_: Any, **__: Any) -> Any:
    raise SonaStoreError("the store is away")


def test_a_save_that_fails_is_made_good_by_the_next(tmp_path: Path, rng: np.random.Generator) -> None:
    run = Run(tmp_path / "sona.db")
    run.push(trajectory(rng, DIM))
    run.consumer.take(64)
    store = run.engine.store
    assert store is not None
    for name in ("put_state", "append"):
        write = getattr(store, name)
        setattr(store, name, _refuse)
        with pytest.raises(SonaStoreError, match="away"):
            run.consumer.save()
        setattr(store, name, write)
        run.push(trajectory(rng, DIM))
        run.check()
    run.save()
    run.crash()
    run.check()
    run.check_rows()
    run.engine.close()


def test_each_ring_has_ids_and_a_position_of_its_own(tmp_path: Path, rng: np.random.Generator) -> None:
    run = Run(tmp_path / "sona.db")
    for n in range(3):
        run.ring = FakeRing(bytes([n] * 16))
        run.crash()
        for _ in range(4):
            run.ring.push(trajectory(rng, DIM))
        run.consumer.take(64)
        run.save()
    assert run.engine.store is not None
    assert len({row.id for row in run.engine.store.trajectories()}) == 12
    run.ring = FakeRing(bytes([1] * 16))  # the second one comes back, with what it has released and more
    run.ring.sequence = 4
    run.crash()
    run.ring.push(feedback(2, 1.0))
    run.consumer.take(64)
    assert run.consumer.feedback == 1
    run.engine.close()


# ---- engines with a store, without a ring ----


def test_feedback_finds_trajectories_of_before_a_restart(tmp_path: Path, rng: np.random.Generator) -> None:
    config = SonaConfig(hidden_dim=DIM, base_lora_rank=8, base_lora_rank_max=8, trajectory_capacity=2)
    model = SonaEngine(SonaConfig(**(config.as_dict() | {"trajectory_capacity": 1000})))
    records = [trajectory(rng, DIM, rewarded=n % 2 == 0) for n in range(6)]
    ids = list(range(100, 106))
    rewards = [(int(rng.integers(6)), float(np.float32(rng.random()))) for _ in range(20)]
    with SonaEngine(config, store=tmp_path / "sona.db") as engine:
        for id, record in zip(ids, records, strict=True):
            assert engine.record(record, id)
            assert not engine.record(record, id)  # once
            model.record(record, id)
    for n, reward in rewards:  # a restart for each
        with SonaEngine(config, store=tmp_path / "sona.db") as engine:
            assert engine.feedback(ids[n], reward)
            assert engine.feedback(ids[n], reward)
            assert not engine.feedback(99, reward)
            assert not engine.record(records[n], ids[n])
            model.feedback(ids[n], reward)
            assert learned(engine) == learned(model)


def test_feedback_whose_state_was_lost_is_learned_from_the_store(tmp_path: Path, rng: np.random.Generator) -> None:
    """Rows reach the disk before the state does: what a crash leaves between is learned when the store is opened, and once."""
    run = Run(tmp_path / "sona.db")
    records = [trajectory(rng, DIM, layers=2) for _ in range(8)]
    for id, record in enumerate(records):
        run.engine.record(record, id)
        run.model.record(record, id)
    run.engine.flush()
    run.model.flush()
    for round_ in range(3):
        for id in (0, 3, 7, 3):
            reward = float(np.float32(rng.random()))
            assert run.engine.feedback(id, reward)
            assert run.model.feedback(id, reward)
        assert run.engine.journal is not None
        run.engine.journal.flush()
        if round_ == 1:
            run.engine.flush()
            run.model.flush()
        run.crash()
        assert learned(run.engine) == learned(run.model)
    run.engine.close()


def test_a_reward_of_another_process_is_learned_by_the_one_that_leads(tmp_path: Path, rng: np.random.Generator) -> None:
    run = Run(tmp_path / "sona.db")
    run.engine.record(trajectory(rng, DIM), 5)
    run.engine.flush()
    before = learned(run.engine)
    with SonaEngine(CONFIG, store=tmp_path / "sona.db") as other:
        assert other.journal is not None
        assert not other.journal.leading
        assert other.feedback(5, 1.0)
        assert not other.feedback(6, 1.0)
        assert learned(other) == before
    assert run.engine.journal is not None
    run.engine.journal.poll()
    assert learned(run.engine) != before
    once = learned(run.engine)
    run.engine.journal.poll()
    assert run.engine.feedback(5, 1.0)
    assert learned(run.engine) == once
    run.engine.close()


def test_what_a_process_learned_before_it_led_is_not_in_what_it_learns_from_then_on(tmp_path: Path, rng: np.random.Generator) -> None:
    run = Run(tmp_path / "sona.db")
    run.engine.record(first := trajectory(rng, DIM), 1)
    other = SonaEngine(CONFIG, store=tmp_path / "sona.db")
    other.record(second := trajectory(rng, DIM), 2)  # learned there, until the state that leads is read
    run.engine.close()
    assert other.journal is not None
    other.journal.poll()
    assert other.journal.leading
    assert other.feedback(2, 1.0)
    run.model.record(first, 1)
    unrewarded = bytearray(second)
    unrewarded[48 + 4 * DIM + 8 : 48 + 4 * DIM + 16] = np.float64(np.nan).tobytes()
    run.model.record(bytes(unrewarded), 2)
    assert run.model.feedback(2, 1.0)
    assert learned(other) == learned(run.model)
    other.close()


def test_a_record_of_elsewhere_is_what_the_engine_would_have_recorded(rng: np.random.Generator) -> None:
    config = SonaConfig(hidden_dim=DIM, reward_range=(-1.0, 1.0))
    ours, theirs = SonaEngine(config), SonaEngine(config)
    for quality in (None, 0.5):
        x, v = rng.normal(size=DIM).astype(np.float32), rng.normal(size=(2, DIM)).astype(np.float32)
        tid = ours.begin_trajectory(x)
        ours.add_step(tid, activations=v[0], reward=-0.5, expected=0.25)
        ours.add_step(tid, activations=v[1], attention_weights=[1.0], x=v[0])
        ours.end_trajectory(tid, quality)
        (kept,) = ours.loop_a.drain_trajectories()
        raw = _with_rewards(encode(kept), [-0.5, math.nan], math.nan if quality is None else quality)
        assert theirs.record(raw)
        (same,) = theirs.loop_a.drain_trajectories()
        assert encode(same) == encode(kept)
        assert ours.feedback(tid, -1.0) == theirs.feedback(tid, -1.0) is True
    assert learned(ours) == learned(theirs)


def _with_rewards(record: bytes, rewards: list[float], quality: float) -> bytes:
    """As it was before anything was brought to [0, 1]; two steps, the second with one attention weight and x."""
    data = bytearray(record)
    data[8:12] = bytes(4)
    data[32:40] = np.float64(quality).tobytes()
    at = 48 + 4 * DIM
    for n, reward in enumerate(rewards):
        data[at + 8 : at + 16] = np.float64(reward).tobytes()
        at += 40 + 4 * DIM + n * 4 * (DIM + 1)
    return bytes(data)
