"""kill -9 at any moment of what a memory does: it is the one of before or after, readable, with the vectors that belong to it."""

import random
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crash import killed

from sona import Router, SonaConfig, SonaEngine
from sona.loops.background import BackgroundLoopConfig
from sona.loops.deep import DeepLoopConfig
from sona.loops.journal import decode_state
from sona.loops.memory import state_name
from sona.memory import NodeKind
from sona.patterns import PatternConfig
from sona.store import SqliteStore

DIM, KEY = 8, state_name("default")
SECRET = "what is to be forgotten {} {}"


def vector(seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal(DIM)


def remember_and_forget(path: str, acknowledge: Connection, seed: int) -> None:
    """Adds memories, flushes, forgets, has deep cycles; acknowledges what is durable, and says before what it is about to forget."""
    rng = random.Random(seed)
    engine = SonaEngine(SonaConfig(hidden_dim=DIM), store=path, deep=DeepLoopConfig(dreams_per_cycle=5))
    memory = engine.memory
    mine: list[tuple[int, int]] = []
    while True:
        added = []
        for _ in range(rng.choice([1, 3, 30])):
            number = rng.getrandbits(60)
            added.append((memory.add(vector(number), SECRET.format(number, "x" * rng.choice([0, 2000]))), number))
        engine.flush()
        acknowledge.send(("added", added))
        mine += added
        if rng.random() < 0.6:
            gone = [mine.pop(rng.randrange(len(mine))) for _ in range(min(len(mine), rng.choice([1, 5])))]
            acknowledge.send(("forgetting", gone))
            memory.forget([id for id, _ in gone])
            acknowledge.send(("forgotten", gone))
        if rng.random() < 0.4:
            engine.deep_learn()
            acknowledge.send(("cycle", memory.graph.cycle))


def serve_and_dream(path: str, acknowledge: Connection, seed: int) -> None:
    """A router that learns, finds patterns and dreams; acknowledges the cycles."""
    rng = np.random.default_rng(seed)
    small = BackgroundLoopConfig(patterns=PatternConfig(embedding_dim=DIM, k_clusters=4), min_trajectories=20)
    arms = {name: np.eye(DIM)[k] for k, name in enumerate("abc")}
    router = Router(arms, store=path, explore="softmax", background=small, deep=DeepLoopConfig(dreams_per_cycle=5, episodes=60))
    while True:
        for _ in range(30):
            decision = router.route(rng.standard_normal(DIM))
            router.feedback(decision.id, float(decision.index == 0))
        router.background_learn()
        router.deep_learn()
        acknowledge.send(("cycle", router.engine.memory.graph.cycle))


def look(path: Path) -> tuple[dict[int, Any], int]:
    """Data of what is in the memory, by id, and its cycle; state and vectors have to belong together."""
    with SqliteStore(path) as store:
        assert store.integrity() == []
        kept = store.get_state(KEY)
        if kept is None:
            assert list(store.vectors_of(KEY)) == []
            return {}, 0
        arrays, _ = decode_state(kept[0])
        assert sorted(arrays["ids"][arrays["kinds"] != NodeKind.EPISODE].tolist()) == [id for id, _ in store.vectors_of(KEY)]
    with SonaEngine(SonaConfig(hidden_dim=DIM), store=path) as engine:
        graph = engine.memory.graph
        for id, v in zip(graph.ids.tolist(), graph.vectors, strict=True):
            if graph.data(id) is not None and isinstance(graph.data(id), str):
                x = vector(int(graph.data(id).split()[5]))
                assert np.allclose(v, x / np.linalg.norm(x), atol=1e-6)
        return {id: graph.data(id) for id in graph.ids.tolist()}, graph.cycle


def kill_memories(path: Path, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    there: dict[int, int] = {}
    cycle = done = forgotten = 0
    for n in range(kills):
        doubtful: list[tuple[int, int]] = []
        for what, told in killed(remember_and_forget, path, rng, 0.3):
            if what == "added":
                there |= dict(told)
            elif what == "forgetting":
                doubtful = told
                there = {id: number for id, number in there.items() if (id, number) not in told}
            elif what == "forgotten":
                doubtful = []
                forgotten += len(told)
                raw = path.read_bytes() + Path(f"{path}-wal").read_bytes()
                assert not any(SECRET.format(number, "").encode() in raw for _, number in told)
            else:
                cycle, done = told, done + 1
        found, now = look(path)
        assert cycle <= now <= cycle + 1
        cycle = now
        for id, number in there.items():
            assert found[id].startswith(SECRET.format(number, ""))
        left = [each[0] in found for each in doubtful]
        assert all(left) or not any(left)  # before or after
        there = {id: int(data.split()[5]) for id, data in found.items()}  # what was added and not acknowledged may be there
        if n % 10 == 9:
            path, there, cycle = path.with_name(f"{n}.db"), {}, 0
    assert done > 0
    assert forgotten > 0


def kill_routers(path: Path, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    cycle = 0
    for _ in range(kills):
        seen = [told for _, told in killed(serve_and_dream, path, rng, 0.2)]
        last = max([cycle, *seen])
        found, cycle = look(path)
        assert last <= cycle <= last + 1
        assert len(found) > 10
    assert cycle > kills


@pytest.mark.parametrize(("kill", "kills"), [(kill_memories, 6), (kill_routers, 2)])
def test_a_memory_survives_kills(kill: Any, kills: int, tmp_path: Path) -> None:
    kill(tmp_path / "sona.db", kills, seed=8)


@pytest.mark.slow
@pytest.mark.parametrize(("kill", "kills"), [(kill_memories, 100), (kill_routers, 40)])
def test_a_memory_survives_many_kills(kill: Any, kills: int, tmp_path: Path) -> None:
    kill(tmp_path / "sona.db", kills, seed=9)
