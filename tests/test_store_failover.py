"""Many processes on one server: one of them learns at a time, whoever is killed or cut off, and nothing that was acknowledged is lost."""

import logging
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import pytest
from crash import FORKSERVER
from postgres import Server
from stores import PostgresPlace
from test_journal import open_router, world

from sona import Router
from sona.errors import SonaStoreError
from sona.loops.journal import Journal
from sona.store import open_store

pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'sona[postgres]'")

# What is written under a lease, with the session that wrote it and the term that was the last at that moment: a record of the server's
# own, made in the same transaction.
AUDIT = (
    "CREATE TABLE writes (at bigint GENERATED ALWAYS AS IDENTITY, pid integer, term bigint, seq bigint)",
    """CREATE FUNCTION note_write() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO writes (pid, term, seq) SELECT pg_backend_pid(), fence, NEW.applied_seq FROM namespaces WHERE ns = NEW.ns;
        RETURN NULL; END $$""",
    "CREATE TRIGGER note_write AFTER INSERT ON state FOR EACH ROW EXECUTE FUNCTION note_write()",
)


def work(url: str, tell: Connection, seed: int) -> None:
    """
    Serves and rewards until it is killed, saves the state often, and tells (kind, about):

    "lease": term, server's process of the session that writes, of the one with the lock;
    "done": ids of rewarded decisions that are durable, with the rewards.
    """
    logging.disable(logging.CRITICAL)
    Journal.__init__.__kwdefaults__["save_every"] = 20
    source = world()
    rng = random.Random(seed)
    router = open_router(url, seed=seed, guard=False)  # so that every reward counts as one choice of the learner
    journal, store = router.engine.journal, router.engine.store
    assert journal is not None
    led, done = 0, []
    while True:
        x, best = source.draw()
        try:
            d = router.route(x)
            reward = float(d.index == best)
            if router.feedback(d.id, reward):
                done.append((d.id, reward))
            if rng.random() < 0.2:
                router.flush()
                tell.send(("done", done))
                done = []
            journal.poll()
            if journal.leading and store._lease.number != led:
                led = store._lease.number
                tell.send(("lease", (led, store._db.pid, store._lease._session.pid)))
            if journal.leading and rng.random() < 0.3:
                journal.save()
        except SonaStoreError:
            pass
        time.sleep(0.01)


@dataclass
class Fleet:
    """Worker processes, and what they told."""

    place: PostgresPlace
    rng: random.Random
    workers: dict[Connection, BaseProcess] = field(default_factory=dict)
    leases: list[tuple[int, int, int, BaseProcess]] = field(default_factory=list)
    """Term, sessions that write and that lock, and whose."""
    sessions: dict[int, set[int]] = field(default_factory=dict)
    done: dict[int, float] = field(default_factory=dict)

    def start(self, count: int) -> None:
        for _ in range(count):
            ours, theirs = FORKSERVER.Pipe(duplex=False)
            process = FORKSERVER.Process(target=work, args=(self.place.where, theirs, self.rng.randrange(2**31)))
            process.start()
            theirs.close()
            self.workers[ours] = process

    def listen(self, seconds: float) -> None:
        give_up = time.monotonic() + seconds
        while (left := give_up - time.monotonic()) > 0:
            for pipe in wait(list(self.workers), left):
                self.take(pipe)

    def take(self, pipe: Any) -> None:
        try:
            kind, about = pipe.recv()
        except (EOFError, OSError):
            self.workers.pop(pipe).join()
            pipe.close()
            return
        if kind == "done":
            self.done.update(about)
        else:
            self.leases.append((*about, self.workers[pipe]))

    def wait_for_leader(self, after: int) -> tuple[int, int, int, BaseProcess]:
        """The one with a later term than `after`."""
        give_up = time.monotonic() + 60
        while not self.leases or self.leases[-1][0] <= after:
            assert time.monotonic() < give_up, "nobody leads"
            self.listen(0.02)
        return self.leases[-1]

    def wait_for_write(self, term: int) -> None:
        """Until something was written under that term, or it is over."""
        give_up = time.monotonic() + 30
        while self.leases[-1][0] == term and time.monotonic() < give_up:
            if self.place.raw("SELECT 1 FROM writes WHERE term >= ? LIMIT 1", term):
                return
            self.listen(0.02)

    def stop(self) -> None:
        for process in self.workers.values():
            process.kill()
        give_up = time.monotonic() + 30
        while self.workers and time.monotonic() < give_up:
            self.listen(0.1)
        assert not self.workers
        # What a killed process sent before is still done by the server, which may take its time.
        while self.place.raw("SELECT 1 FROM pg_stat_activity WHERE application_name = 'sona'"):
            assert time.monotonic() < give_up + 30, "sessions outlive their processes"
            time.sleep(0.05)


@pytest.fixture
def fleet(postgres_server: Server) -> Iterator[Fleet]:
    place = PostgresPlace(postgres_server.url())
    place.open().close()
    for statement in AUDIT:
        place.raw(statement)
    made = Fleet(place, random.Random(11))
    yield made
    for process in made.workers.values():
        process.kill()


def fail_over(fleet: Fleet, processes: int, failovers: int) -> dict[str, int]:
    """Kill the leader, or cut the session of its lease, so many times; then check what the server saw."""
    fleet.start(processes)
    term, cut = 0, 0
    for n in range(failovers):
        term, _, locks, leader = fleet.wait_for_leader(term)
        if n % 3 == 0:
            fleet.listen(fleet.rng.random() * 0.1)  # maybe before it has written anything
        else:
            fleet.wait_for_write(term)
        if n % 2 == 0:
            leader.kill()
            fleet.start(1)
        else:
            fleet.place.raw("SELECT pg_terminate_backend(?)", locks)
            cut += 1
    last, *_ = fleet.wait_for_leader(term)
    fleet.listen(1.0)
    give_up = time.monotonic() + 60
    while len(fleet.done) <= 50 and time.monotonic() < give_up:  # on a machine with much to do
        fleet.listen(0.1)
    fleet.stop()
    assert cut == failovers // 2
    check_leases(fleet, last, failovers)
    check_rewards(fleet)
    others = sum(before[3] is not after[3] for before, after in pairwise(fleet.leases))
    writes = len(fleet.place.raw("SELECT 1 FROM writes"))
    return {"terms": last, "taken over by another": others, "writes": writes, "rewards acknowledged": len(fleet.done)}


def check_leases(fleet: Fleet, last: int, failovers: int) -> None:
    """Every term had one holder, and every write under a lease was by the session whose term was the last at that moment."""
    writes = fleet.place.raw("SELECT pid, term, seq FROM writes ORDER BY at")
    terms = [term for _, term, _ in writes]
    assert terms == sorted(terms), "a write under an earlier term was accepted"
    writer: dict[int, int] = {}
    for pid, term, _ in writes:
        assert writer.setdefault(term, pid) == pid, f"two sessions wrote in term {term}"
    told = [lease[0] for lease in fleet.leases]
    assert len(told) == len(set(told)), "a term was given out twice"
    for term, session, *_ in fleet.leases:
        assert writer.get(term, session) == session
    assert last > failovers
    assert len(writer) >= failovers / 2


def check_rewards(fleet: Fleet) -> None:
    """What was acknowledged is in the store, and who opens it next has learned each of the store's rewards once."""
    with open_store(fleet.place.where) as store:
        kept = {row.id: row.reward for _, row in store.feedback_after(0, 10**6)}
        assert store.integrity() == []
        give_up = time.monotonic() + 20
        while not store.try_lease():
            assert time.monotonic() < give_up
            time.sleep(0.05)
        count = store.last_seq()
    assert len(kept) == count
    assert fleet.done.items() <= kept.items()
    with open_router(fleet.place.where, guard=False) as router:
        had = learned(router)
    assert had == count, f"{had} rewards learned of {count}"


def learned(router: Router) -> int:
    """Rewards that are in what this router has, whoever learned them."""
    return int(router.engine.state()["policy.arm_calibration"][:, 2].sum())


def test_one_process_learns_at_a_time_whoever_is_killed_or_cut_off(fleet: Fleet) -> None:
    found = fail_over(fleet, processes=4, failovers=4)
    assert found["rewards acknowledged"] > 50


@pytest.mark.slow
def test_one_of_eight_processes_learns_at_a_time_over_a_hundred_failovers(fleet: Fleet) -> None:
    found = fail_over(fleet, processes=8, failovers=100)
    print(found)
    assert found["terms"] > 100
    assert found["taken over by another"] >= 50


if __name__ == "__main__":  # the same by hand: how many processes and failovers
    import sys

    server = Server()
    try:
        place = PostgresPlace(server.url())
        place.open().close()
        for statement in AUDIT:
            place.raw(statement)
        began = time.monotonic()
        found = fail_over(Fleet(place, random.Random(11)), int(sys.argv[1]), int(sys.argv[2]))
        print(found, f"{time.monotonic() - began:.0f} s")
    finally:
        server.close()
