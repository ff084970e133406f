"""Threads see a whole state or another whole state, counters are exact, and what was recorded outlives close and the interpreter."""

import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RunPython

import sona
from sona.errors import SonaClosedError, SonaError

Array = np.ndarray[Any, Any]

THREADS = 4
ARMS = 3
DIM = 16
ROUNDS = 500  # of each thread


@pytest.fixture(autouse=True)
def impatient() -> Iterator[None]:
    """Threads swap places all the time."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def together(*tasks: Callable[[], None]) -> None:
    """Run each on a thread of its own, started at once; raise what the first of them raised."""
    start = threading.Barrier(len(tasks))
    failures: list[BaseException] = []

    def run(task: Callable[[], None]) -> None:
        start.wait(10)
        try:
            task()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(task,), daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if failures:
        raise failures[0]


# ---- readers beside the learner ----


class Flicker:
    """
    An adapter to which a pair and its negation are appended in turn, folded and truncated on the way: what it adds to any x is nothing or
    one pair, at every moment. A reader that sees anything else has seen a torn or half-folded adapter.
    """

    def __init__(self, adapter: sona.Adapter, rng: np.random.Generator) -> None:
        self.adapter = adapter
        self.up, self.down = rng.normal(size=(2, adapter.dim)).astype(np.float32)
        self.x = rng.normal(size=(48, adapter.dim)).astype(np.float32)
        self.pair = np.outer(self.x.astype(np.float64) @ self.down, self.up)  # (48, dim), what one pair adds
        self.bound = 1e-4 * np.abs(self.pair).max()
        self.done = False
        self.seen = [0, 0]  # how often: nothing, one pair

    def learn(self) -> None:
        """Until every state was seen often enough, 3000 steps or 30 s at the most."""
        give_up = time.monotonic() + 30
        try:
            for step in itertools.count():
                self.adapter.append(self.up, self.down, coef=-1.0 if step % 2 else 1.0)
                if step % 7 == 0:
                    self.adapter.fold()
                if step % 31 == 0:
                    self.adapter.truncate()
                if step % 5 == 0:
                    time.sleep(0)  # lets a reader in, at both parities
                if (step >= 3000 and min(self.seen) >= 20) or time.monotonic() > give_up:
                    break
        finally:
            self.done = True

    def check(self, added: Array, rows: slice) -> None:
        """Exactly one of the two states, the same one for all rows."""
        want = self.pair[rows]
        state = int(np.vdot(added, want) > np.vdot(want, want) / 2)
        np.testing.assert_allclose(added, want * state, rtol=0, atol=self.bound)
        self.seen[state] += 1

    def read_one(self) -> None:
        for i in itertools.cycle(range(len(self.x))):
            if self.done:
                return
            added = np.zeros((1, self.adapter.dim), np.float32)
            self.adapter.forward(self.x[i], added[0])
            self.check(added, slice(i, i + 1))

    def read_batch(self) -> None:
        while not self.done:
            added = np.zeros_like(self.x)
            self.adapter.forward_batch(self.x, added)
            self.check(added, slice(None))


def test_readers_of_an_adapter_see_whole_states(rng: np.random.Generator) -> None:
    flicker = Flicker(sona.Adapter(256, rank=2, rank_max=2, micro=2, window=5), rng)
    together(flicker.learn, flicker.read_one, flicker.read_batch, flicker.read_batch)
    assert min(flicker.seen) > 0
    assert flicker.adapter.info()["truncations"] > 50


def test_requests_of_an_engine_see_whole_states(rng: np.random.Generator) -> None:
    engine = sona.SonaEngine(sona.SonaConfig(hidden_dim=256, base_lora_rank=2, base_lora_rank_max=2))
    flicker = Flicker(engine.adapters[0], rng)

    def apply_batch() -> None:
        while not flicker.done:
            flicker.check(engine.apply_batch(flicker.x) - flicker.x, slice(None))

    def apply() -> None:
        while not flicker.done:
            flicker.check((engine.apply(flicker.x[3]) - flicker.x[3])[None], slice(3, 4))

    together(flicker.learn, apply_batch, apply_batch, apply)
    assert min(flicker.seen) > 0


def test_more_readers_than_handles_are_served_or_refused(rng: np.random.Generator) -> None:
    adapter = sona.Adapter(16, rank=2)
    adapter.assign(*rng.normal(size=(2, 2000, 16)).astype(np.float32))  # so many rows that most threads are inside at once
    x = rng.normal(size=(4000, 16)).astype(np.float32)
    want = np.zeros_like(x)
    adapter.forward_batch(x, want)
    refused: list[str] = []

    def read() -> None:
        got = np.zeros_like(x)
        try:
            adapter.forward_batch(x, got)
        except SonaError as error:
            refused.append(str(error))
            np.testing.assert_array_equal(got, 0)
        else:
            np.testing.assert_array_equal(got, want)

    together(*[read] * 100)
    assert set(refused) <= {"forward_batch: more than 63 threads are reading this adapter"}
    refused.clear()
    together(*[read] * THREADS)  # the handles were given back
    assert not refused


# ---- one router, several threads ----


def make_router(**options: Any) -> sona.Router:
    return sona.Router([f"arm{k}" for k in range(ARMS)], dim=DIM, **options)


def client(router: sona.Router, seed: int, rounds: int, ids: list[int]) -> Callable[[], None]:
    """Requests one by one and in batches, each with a reward, as one server thread makes them."""
    x = np.random.default_rng(seed).normal(size=(rounds, DIM)).astype(np.float32)

    def serve() -> None:
        for i in range(0, rounds, 5):
            for row in x[i : i + 2]:
                decision = router.route(row)
                ids.append(decision.id)
                assert router.feedback(decision.id, float(decision.index == seed % ARMS))
            batch = router.route_batch(x[i + 2 : i + 5])
            ids.extend(decision.id for decision in batch)
            assert router.feedback_batch([d.id for d in batch], [0.5] * len(batch)) == len(batch)

    return serve


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("explore", ["greedy", "thompson"])
def test_counters_are_exact_and_no_id_comes_twice(tmp_path: Path, stored: bool, explore: Any) -> None:
    path = tmp_path / "sona.db"
    router = make_router(store=path if stored else None, explore=explore)
    ids: list[list[int]] = [[] for _ in range(THREADS)]
    together(*(client(router, seed, ROUNDS, ids[seed]) for seed in range(THREADS)))
    total = THREADS * ROUNDS
    every = set(itertools.chain(*ids))
    assert len(every) == total
    stats = router.stats()
    assert {name: stats[name] for name in ("requests", "learned", "revised", "unknown_feedback", "rejected", "unrecorded")} == {
        "requests": total,
        "learned": total,
        "revised": 0,
        "unknown_feedback": 0,
        "rejected": 0,
        "unrecorded": 0,
    }
    if stored:
        router.flush()
        with sona.SqliteStore(path) as store:
            kept = [(row.id, reward) for row, reward in store.decisions()]
            rewarded = [row.id for _, row in store.feedback_after(0, limit=2 * total)]
        assert len(kept) == total
        assert {id for id, _ in kept} == every
        assert all(reward in (0.0, 0.5, 1.0) for _, reward in kept)
        assert sorted(rewarded) == sorted(every)
    router.close()


def test_rewards_of_one_decision_from_several_threads_are_one_reward() -> None:
    router = make_router()
    x = np.random.default_rng(0).normal(size=(200, DIM)).astype(np.float32)
    ids = [decision.id for decision in router.route_batch(x)]
    together(*[lambda: [router.feedback(id, 0.75) for id in ids] and None] * THREADS)
    stats = router.stats()
    assert (stats["learned"], stats["revised"]) == (200, 0)


def test_arms_come_and_go_while_others_route(tmp_path: Path) -> None:
    router = make_router(store=tmp_path / "sona.db")
    stop = threading.Event()

    def change_arms() -> None:
        rng = np.random.default_rng(5)
        try:
            for k in range(60):
                router.add_arm(f"guest{k}", rng.normal(size=DIM))
                time.sleep(0.001)
                router.remove_arm(f"guest{k}")
        finally:
            stop.set()

    def serve() -> None:
        rng = np.random.default_rng(6)
        while not stop.is_set():
            decision = router.route(rng.normal(size=DIM))
            assert decision.arm in decision.candidates
            assert len(decision.scores) == len(decision.candidates)
            router.feedback(decision.id, 0.5)  # False where the arm has gone meanwhile

    together(change_arms, serve, serve)
    assert router.arms == ("arm0", "arm1", "arm2")
    router.close()
    with sona.SqliteStore(tmp_path / "sona.db") as store:
        for row, _ in store.decisions():
            kept = store.arms(row.arm_set)
            assert kept is not None
            assert row.arm < len(kept[0])


# ---- the end ----


def calls(router: sona.Router) -> dict[str, Callable[[], object]]:
    x = np.ones(DIM, np.float32)
    return {
        "route": lambda: router.route(x),
        "route_batch": lambda: router.route_batch(x[None]),
        "predict": lambda: router.predict(x[None]),
        "apply_batch": lambda: router.apply_batch(x[None]),
        "feedback": lambda: router.feedback(1, 1.0),
        "feedback_batch": lambda: router.feedback_batch([1], [1.0]),
        "add_arm": lambda: router.add_arm("another", -x),
        "remove_arm": lambda: router.remove_arm("arm0"),
        "warm_start": lambda: router.warm_start([(x, "arm0", 1.0)]),
        "tick": router.tick,
        "flush": router.flush,
    }


@pytest.mark.parametrize("stored", [False, True])
def test_two_threads_close_at_once(tmp_path: Path, stored: bool) -> None:
    for attempt in range(10):
        path = tmp_path / f"{attempt}.db"
        router = make_router(store=path if stored else None)
        for x in np.random.default_rng(attempt).normal(size=(50, DIM)):
            router.feedback(router.route(x).id, 1.0)
        together(router.close, router.close)
        router.close()
        for name, call in calls(router).items():
            with pytest.raises(SonaClosedError):
                pytest.fail(f"{name} returned {call()!r} after close")
        if stored:
            with sona.SqliteStore(path) as store:
                assert store.count() == 50
                assert store.last_seq() == 50
                assert store.try_lease()  # given back


def test_requests_during_close_are_served_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "sona.db"
    router = make_router(store=path)
    rewarded: list[int] = []
    refused = []

    def serve(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            while True:
                decision = router.route(rng.normal(size=DIM))
                if router.feedback(decision.id, 1.0):
                    rewarded.append(decision.id)
        except SonaClosedError:
            refused.append(seed)

    def close() -> None:
        while len(rewarded) < 500:
            time.sleep(0.001)
        router.close()

    together(close, lambda: serve(0), lambda: serve(1), lambda: serve(2))
    assert sorted(refused) == [0, 1, 2]
    with sona.SqliteStore(path) as store:
        kept = {row.id for row, _ in store.decisions()}
        durable = {row.id for _, row in store.feedback_after(0, limit=1 << 20)}
    assert set(rewarded) <= kept
    assert set(rewarded) <= durable


@pytest.mark.parametrize("where", ["before it is looked at", "when it is about to be recorded"])
def test_a_reward_that_close_overtakes_is_refused(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sona.db"
    router = make_router(store=path)
    decision = router.route(np.ones(DIM))
    owner: Any = router.engine if where.startswith("before") else router
    name = "_unit" if where.startswith("before") else "_accept"
    real = getattr(owner, name)
    checked, closed = threading.Event(), threading.Event()

    def slowly(*arguments: Any) -> Any:
        checked.set()
        assert closed.wait(10)
        return real(*arguments)

    def give() -> None:
        with pytest.raises(SonaClosedError):
            router.feedback(decision.id, 1.0)

    def close() -> None:
        assert checked.wait(10)  # the reward has found the router open
        router.close()
        closed.set()

    monkeypatch.setattr(owner, name, slowly)
    together(give, close)
    assert router.stats()["learned"] == 0
    with sona.SqliteStore(path) as store:
        assert store.last_seq() == 0


EXIT = """
    import sys, threading, time
    import numpy as np
    import sona

    store, out, how = sys.argv[1:]
    router = sona.Router(["arm0", "arm1", "arm2"], dim=16, store=store)
    rng = np.random.default_rng(1)
    for x in rng.normal(size=(400, 16)).astype(np.float32):
        d = router.route(x)
        assert router.feedback(d.id, float(d.index == int(x[0] > 0)))
    last = router.route(x)  # without a reward
    np.save(out, router.apply_batch(np.eye(16, dtype=np.float32)))
    if how == "busy":
        def serve():
            while True:
                router.route(x)
                time.sleep(0.0005)
        threading.Thread(target=serve, daemon=True).start()
    print(last.id, flush=True)
    if how == "raise":
        raise SystemExit(3)
"""


@pytest.mark.parametrize("how", ["return", "raise", "busy"])
def test_an_interpreter_that_ends_without_close_loses_nothing(tmp_path: Path, run_python: RunPython, how: str) -> None:
    path, out = tmp_path / "sona.db", tmp_path / "learned.npy"
    last = int(run_python(EXIT, path, out, how, code=3 if how == "raise" else 0).stdout)
    with sona.SqliteStore(path) as store:
        decisions = {row.id for row, _ in store.decisions()}
        assert store.integrity() == []
        assert store.last_seq() == 400
        assert len({row.id for _, row in store.feedback_after(0)}) == 400
    assert last in decisions
    assert len(decisions) == 401 if how != "busy" else len(decisions) >= 401
    with make_router(store=path) as router:
        assert router.stats()["engine"]["store"]["leading"]
        np.testing.assert_allclose(router.apply_batch(np.eye(DIM, dtype=np.float32)), np.load(out), rtol=0, atol=1e-4)
        assert router.feedback(last, 1.0)
        assert router.feedback(router.route(np.ones(DIM)).id, 1.0, sync=True)
