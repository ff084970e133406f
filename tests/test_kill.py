"""kill -9 of processes that serve, learn in cycles and dream: nothing acknowledged is lost, nothing is torn, and the next one goes on."""

import random
import time
from collections import Counter
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crash import FORKSERVER

from sona import Router, SqliteStore
from sona.health import faults, store_report
from sona.loops.background import BackgroundLoopConfig
from sona.loops.deep import DeepLoopConfig
from sona.loops.journal import decode_state, learners
from sona.loops.memory import state_name
from sona.loops.versions import StoredVersions
from sona.memory import NodeKind
from sona.patterns import PatternConfig

DIM = 8
NORMAL = {"rewards": 8, "cycles": 6, "dreams": 6}
SLOW = {"rewards": 270, "cycles": 140, "dreams": 110}

Seen = list[tuple[Any, ...]]


def open_router(path: str | Path, **options: Any) -> Router:
    return Router(
        {name: np.eye(DIM)[k] for k, name in enumerate("abc")},
        store=path,
        background=BackgroundLoopConfig(patterns=PatternConfig(embedding_dim=DIM, k_clusters=4), min_trajectories=20, serve="screened"),
        deep=DeepLoopConfig(dreams_per_cycle=5, episodes=60),
        **options,
    )


def serve(router: Router, rng: np.random.Generator, *, sync: bool) -> tuple[int, float]:
    """One decision and its reward, which follows from the id, so that a mixed-up one shows."""
    d = router.route(rng.standard_normal(DIM))
    reward = float(d.id % 11) / 10
    assert router.feedback(d.id, reward, sync=sync)
    return d.id, reward


# ---- those that are killed ----


def reward_for_ever(path: str, acknowledge: Connection, seed: int) -> None:
    """Several of these share a file: one learns, the others queue, and one of them takes over."""
    rng = np.random.default_rng(seed)
    router = open_router(path)
    while True:
        acknowledge.send(("reward", *serve(router, rng, sync=True)))
        if rng.random() < 0.2:
            batch = [serve(router, rng, sync=False) for _ in range(5)]
            router.flush()
            for each in batch:
                acknowledge.send(("reward", *each))
        router.tick()


def cycle_for_ever(path: str, acknowledge: Connection, seed: int) -> None:
    """Background cycles, whose candidates become versions, are served, go on trial or not; sometimes one is published by hand."""
    rng = np.random.default_rng(seed)
    router = open_router(path, explore="softmax")
    while True:
        for _ in range(25):
            acknowledge.send(("reward", *serve(router, rng, sync=False), "later"))
        result = router.background_learn()
        acknowledge.send(("durable",))
        if result.version is not None:
            acknowledge.send(("version", result.version.number))
        if rng.random() < 0.3 and (known := router.engine.versions()):
            chosen = router.engine.publish(known[int(rng.integers(len(known)))])
            acknowledge.send(("published", chosen.number))


def dream_for_ever(path: str, acknowledge: Connection, seed: int) -> None:
    """Deep cycles over decisions, patterns and what a user remembers."""
    rng = np.random.default_rng(seed)
    router = open_router(path)
    memory = router.engine.memory
    while True:
        for _ in range(20):
            acknowledge.send(("reward", *serve(router, rng, sync=False), "later"))
        number = int(rng.integers(1 << 60))
        id = memory.add(np.random.default_rng(number).standard_normal(DIM), {"number": number})
        router.flush()
        acknowledge.send(("durable",))
        acknowledge.send(("memory", id, number))
        router.deep_learn()
        acknowledge.send(("cycle", memory.graph.cycle))


# ---- killing ----


class Victims:
    """Processes of one kind on one file, each of which is killed at a moment of its own; what they acknowledged until then."""

    def __init__(self, target: Any, path: Path, rng: random.Random, count: int, longest: float) -> None:
        self.seen: list[Seen] = [[] for _ in range(count)]
        self._pipes: list[Any] = []
        self._children = []
        for _ in range(count):
            ours, theirs = FORKSERVER.Pipe(duplex=False)
            self._children.append(FORKSERVER.Process(target=target, args=(str(path), theirs, rng.randrange(2**32))))
            self._children[-1].start()
            theirs.close()
            self._pipes.append(ours)
        self._kill(rng, longest)

    def _kill(self, rng: random.Random, longest: float) -> None:
        for number, pipe in enumerate(self._pipes):
            assert pipe.poll(60), "a process says nothing"
            self.seen[number].append(pipe.recv())
        order = rng.sample(range(len(self._pipes)), len(self._pipes))
        alive = dict(enumerate(self._pipes))
        for number in order:
            end = time.monotonic() + rng.random() * longest / len(order)
            while (left := end - time.monotonic()) > 0:
                self._read(alive, left)
            self._children[number].kill()
            del alive[number]
        for number, pipe in enumerate(self._pipes):
            with suppress(EOFError, OSError):  # a last message that was cut short was not received
                while True:
                    self.seen[number].append(pipe.recv())
            self._children[number].join(60)
            assert self._children[number].exitcode == -9, "it ended by itself"
            self._children[number].close()
            pipe.close()

    def _read(self, alive: dict[int, Any], left: float) -> None:
        for pipe in wait(list(alive.values()), left):
            number = next(number for number, each in alive.items() if each is pipe)
            self.seen[number].append(pipe.recv())  # type: ignore[union-attr]


def rewards_of(seen: Seen) -> dict[int, float]:
    """Those that were durable by their own word, or by a later one of the same process."""
    certain: dict[int, float] = {}
    later: dict[int, float] = {}
    for what, *told in seen:
        if what == "reward":
            (later if len(told) > 2 else certain)[told[0]] = told[1]
        else:
            certain |= later
    return certain


def look(path: Path, known: dict[int, float], seen: Seen, before: dict[str, int]) -> dict[str, int]:
    """Nothing of what was acknowledged is missing, everything that is there is whole; how far versions and cycles have come."""
    assert faults(store_report(path)) == []
    told = Counter({what: max((each[1] for each in seen if each[0] == what), default=0) for what in ("version", "cycle")})
    with SqliteStore(path) as store:
        assert store.integrity() == []
        kept = {row.id: reward for row, reward in store.decisions()}
        assert {id: kept.get(id) for id in known} == known
        assert all(reward is None or reward == float(id % 11) / 10 for id, reward in kept.items())
        for name in learners(store):
            state = store.get_state(name)  # a damaged one would warn
            assert state is not None
            arrays, meta = decode_state(state[0])
            assert np.isfinite(arrays["layer0.up"]).all()
            assert all(first <= last <= store.last_seq() for first, last in meta["included"])
        versions = StoredVersions(store, "default").all()
        newest = max((version.number for version in versions), default=0)
        assert newest >= max(told["version"], before["version"])
        assert sum(version.published for version in versions) <= 1
        memory = store.get_state(state_name("default"))
        ids = [] if memory is None else decode_state(memory[0])[0]
        if memory is not None:
            lasting = ids["ids"][ids["kinds"] != NodeKind.EPISODE].tolist()  # type: ignore[call-overload]
            assert sorted(lasting) == [id for id, _ in store.vectors_of(state_name("default"))]
    with open_router(path) as router:
        assert router.stats()["engine"]["store"]["leading"]
        graph = router.engine.memory.graph
        assert graph.cycle >= max(told["cycle"], before["cycle"])
        for what, *about in seen:
            if what == "memory" and about[0] in graph:
                assert graph.data(about[0]) == {"number": about[1]}
        assert all(what != "memory" or about[0] in graph for what, *about in seen)
        rng, learned = np.random.default_rng(len(known)), router.stats()["learned"]
        for _ in range(3):  # learning goes on
            known.update([serve(router, rng, sync=True)])
        assert router.stats()["learned"] == learned + 3
        return {"version": newest, "cycle": graph.cycle}


# What is killed, how many share a file, and how many seconds they live at most after the first acknowledgement.
KINDS = {"rewards": (reward_for_ever, 3, 0.2), "cycles": (cycle_for_ever, 1, 0.5), "dreams": (dream_for_ever, 1, 0.3)}


@pytest.mark.parametrize("kills", [NORMAL, pytest.param(SLOW, marks=pytest.mark.slow)], ids=["few", "many"])
def test_kills_lose_nothing_and_tear_nothing(kills: dict[str, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(11)
    done: Counter[str] = Counter()
    acknowledged, progress = 0, Counter({"version": 0, "cycle": 0})
    least = {"rewards": {}, "cycles": {"version": kills["cycles"] / 5}, "dreams": {"cycle": kills["dreams"] / 2}}
    for kind, (target, count, longest) in KINDS.items():
        known: dict[int, float] = {}
        reached = {"version": 0, "cycle": 0}
        rounds = 0
        while done[kind] < kills[kind] or any(progress[what] < most for what, most in least[kind].items()):
            if done[kind] >= kills[kind]:  # a machine that is busy with something else: longer lives, which come to what is to be killed
                longest *= 2
                assert longest < 100
            if rounds % 15 == 0:  # a new file from time to time: its making is killed too, and looking at it stays quick
                path, known, reached = tmp_path / f"{kind}-{rounds}.db", {}, {"version": 0, "cycle": 0}
            victims = Victims(target, path, rng, min(count, max(kills[kind] - done[kind], 1)), longest)
            done[kind] += len(victims.seen)
            for seen in victims.seen:
                new = rewards_of(seen)
                known |= new
                acknowledged += len(new)
            before, reached = reached, look(path, known, [each for seen in victims.seen for each in seen], reached)
            progress.update({what: reached[what] - before[what] for what in reached})
            rounds += 1
    assert all(done[kind] >= kills[kind] for kind in kills)
    assert acknowledged > 5 * sum(kills.values())
    with capsys.disabled():
        print(
            f"\n{sum(done.values())} kills ({', '.join(f'{n} of {kind}' for kind, n in done.items())}): {acknowledged} acknowledged"
            f" rewards, {progress['version']} versions, {progress['cycle']} deep cycles; none lost, none torn"
        )
