"""kill -9 at random moments: whatever was acknowledged is there, and nothing is torn."""

import os
import random
import struct
import time
from collections.abc import Iterator
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from crash import FORKSERVER, killed

from sona.store import DecisionRow, FeedbackRow, GroupWriter, SqliteStore, Store, TrajectoryRow, load_snapshot, open_store, save_snapshot

# A server process with the imports done forks the victims: tens of milliseconds for each, and no thread of pytest's is forked.

NORMAL, SLOW = 48, 400


def decision(id: int) -> DecisionRow:
    # The content follows from the id, so that a torn or mixed-up row shows; sizes differ, so that pages split.
    return DecisionRow(id, float(id), struct.pack("<q", id) * (1 + id % 300), id % 7, 1, None, 1.0, struct.pack("<q", id), f"s{id % 5}")


def feedback(id: int) -> FeedbackRow:
    return FeedbackRow(id, float(id), float(id))


def lead(store: Store) -> None:
    """The dead hold no lease, as soon as a server has noticed."""
    give_up = time.monotonic() + 20
    while not store.try_lease():
        assert not isinstance(store, SqliteStore), "a file's lease ends with its holder"
        assert time.monotonic() < give_up
        time.sleep(0.002)


def append_groups(path: str, acknowledge: Connection, seed: int) -> None:
    """Appends groups of random size and acknowledges the highest id of each; every fifth time, adapter state as well."""
    rng = random.Random(seed)
    store = open_store(path)
    lead(store)
    sequence = store.session << 40
    group = 0
    while True:
        ids = range(sequence, sequence + rng.choice([1, 3, 20, 200]))
        sequence = ids.stop
        seq = store.append(map(decision, ids), map(feedback, ids), [TrajectoryRow(ids[0], 0.0, b"t" * 50)])
        acknowledge.send(("rows", ids.start, ids.stop))
        group += 1
        if group % 5 == 0:
            store.put_state("adapter", struct.pack("<q", seq) * rng.choice([10, 10_000]), seq)
            acknowledge.send(("state", seq, None))


def write_with_flush(path: str, acknowledge: Connection, seed: int) -> None:
    """A hot thread records rows, the writer's thread writes groups, flush acknowledges."""
    rng = random.Random(seed)
    store = open_store(path)
    lead(store)
    rows: list[int] = []

    def drain():
        taken = rows[:]
        del rows[: len(taken)]
        return map(decision, taken), map(feedback, taken), ()

    writer = GroupWriter(store, drain, interval=0.002)
    sequence = start = store.session << 40
    while True:
        rows.append(sequence)
        sequence += 1
        writer.notify()
        if rng.random() < 0.02:
            writer.flush()
            acknowledge.send(("rows", start, sequence))
            start = sequence


def save_snapshots(path: str, acknowledge: Connection, seed: int) -> None:
    """Saves snapshot after snapshot, counting on from the one that is there."""
    rng = random.Random(seed)
    n = load_snapshot(path)[1]["n"] if os.path.isdir(path) and os.listdir(path) else 0
    while True:
        n += 1
        save_snapshot(path, {"a": np.full(rng.choice([10, 100_000]), n), "b": np.array(n)}, {"n": n})
        acknowledge.send(n)


def check_store(path: Path | str, acknowledged: list) -> None:
    with open_store(path) as store:
        assert store.integrity() == []
        lead(store)
        state = None
        for kind, first, last in acknowledged:
            if kind == "state":
                state = first
                continue
            for id in range(first, last):
                assert store.decision(id) == decision(id)
                assert store.reward(id) == float(id)
        if state is not None:
            blob, seq = store.get_state("adapter")
            assert seq >= state
            assert blob[:8] == struct.pack("<q", seq)
        # Groups are whole: no decision without its feedback, none with a content that is not its own.
        for row, reward in store.decisions(500):
            assert row == decision(row.id)
            assert reward == float(row.id)


def kill_stores(places: Iterator[Path | str], target, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    rows = 0
    path = next(places)
    for n in range(kills):
        acknowledged = killed(target, path, rng, 0.08)
        check_store(path, acknowledged)
        rows += sum(last - first for kind, first, last in acknowledged if kind == "rows")
        if n % 10 == 9:  # a fresh file from time to time: its making is killed too, and checks stay quick
            path = next(places)
    assert rows > 10 * kills


@pytest.mark.parametrize("target", [append_groups, write_with_flush])
def test_nothing_acknowledged_is_lost_by_kills(tmp_path, target):
    kill_stores((tmp_path / f"{n}.db" for n in count()), target, NORMAL // 2, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("target", [append_groups, write_with_flush])
def test_nothing_acknowledged_is_lost_by_many_kills(tmp_path, target):
    kill_stores((tmp_path / f"{n}.db" for n in count()), target, SLOW, seed=2)


@pytest.mark.parametrize("target", [append_groups, write_with_flush])
def test_nothing_acknowledged_is_lost_by_kills_of_a_servers_clients(postgres_server, target):
    kill_stores((postgres_server.url() for _ in count()), target, 10, seed=6)


@pytest.mark.slow
@pytest.mark.parametrize("target", [append_groups, write_with_flush])
def test_nothing_acknowledged_is_lost_by_many_kills_of_a_servers_clients(postgres_server, target):
    kill_stores((postgres_server.url() for _ in count()), target, 100, seed=7)


def kill_snapshots(path: Path, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    last = 0
    for _ in range(kills):
        acknowledged = killed(save_snapshots, path, rng, 0.06)
        back, meta = load_snapshot(path)
        last = max([last, *acknowledged])
        assert last <= meta["n"] <= last + 1
        assert back["b"] == meta["n"]
        assert (back["a"] == meta["n"]).all()
        last = meta["n"]
    assert last > kills


def test_a_snapshot_is_the_old_or_the_new_after_kills(tmp_path):
    kill_snapshots(tmp_path / "snapshot", NORMAL, seed=3)


@pytest.mark.slow
def test_a_snapshot_is_the_old_or_the_new_after_many_kills(tmp_path):
    kill_snapshots(tmp_path / "snapshot", SLOW, seed=4)


def open_and_die(path: str, acknowledge: Connection, seed: int) -> None:
    acknowledge.send("started")
    for n in range(1000):
        SqliteStore(f"{path}-{n}").close()


def test_a_kill_while_the_file_is_made_leaves_a_usable_file(tmp_path):
    rng = random.Random(5)
    for attempt in range(8):
        killed(open_and_die, tmp_path / f"{attempt}", rng, 0.05)
        for file in sorted(tmp_path.glob(f"{attempt}-*")):
            if not file.name.endswith(("-wal", "-shm", "-journal")):
                with SqliteStore(file) as store:
                    store.append([decision(1)])
                    assert store.integrity() == []


# -- several processes on one file ---------------------------------------------------------------------------------


def append_one_by_one(path: str, acknowledge: Connection, rows: int) -> None:
    with open_store(path) as store:
        base = store.session << 40
        for id in range(base, base + rows):
            store.append([decision(id)], [feedback(id)])
            acknowledge.send(id)


def test_processes_append_to_one_store_and_lose_nothing(place):
    path = place.where
    pipes, children = [], []
    for _ in range(3):
        ours, theirs = FORKSERVER.Pipe(duplex=False)
        children.append(FORKSERVER.Process(target=append_one_by_one, args=(str(path), theirs, 150)))
        children[-1].start()
        theirs.close()
        pipes.append(ours)
    acknowledged = []
    for pipe in pipes:
        try:
            while True:
                acknowledged.append(pipe.recv())
        except EOFError:
            pipe.close()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
        child.close()
    assert len(acknowledged) == len(set(acknowledged)) == 450
    with place.open() as store:
        assert {row.id for row, reward in store.decisions() if reward == float(row.id)} == set(acknowledged)
        assert [seq for seq, _ in store.feedback_after(0)] == list(range(1, 451))
        assert store.integrity() == []


def test_the_lease_goes_to_another_process_when_its_holder_is_killed(tmp_path):
    path = tmp_path / "sona.db"
    ours, theirs = FORKSERVER.Pipe(duplex=False)
    child = FORKSERVER.Process(target=append_groups, args=(str(path), theirs, 0))
    child.start()
    theirs.close()
    assert ours.poll(60)
    with SqliteStore(path) as store:
        assert not store.try_lease()
        store.append([decision(1)])  # a follower still appends
        child.kill()
        child.join(60)
        assert store.try_lease()
    child.close()
    ours.close()
