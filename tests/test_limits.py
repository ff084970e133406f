"""Promises of the limits of sources: one of many cannot take over, honest ones are left alone, and a replay weighs as the first time."""

import json
import math
from dataclasses import astuple
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from conftest import RunPython
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import Clusters

from sona import Router, SonaTypeError, SonaValueError, SourceLimits
from sona.cli import main
from sona.loops.limits import Sources

ARMS = Clusters(0).arms


def honest(router: Router, world: Clusters, rounds: int, sources: Any = 8, **feedback: Any) -> None:
    """Rewards that are true, from each source in turn."""
    for t in range(rounds):
        x, best = world.draw()
        d = router.route(x)
        assert router.feedback(d.id, float(d.index == best), source=f"s{t % sources}", **feedback)


def bits(router: Router) -> list[bytes]:
    return [name.encode() + array.tobytes() for name, array in router.engine.state().items()]


def weights(router: Router) -> dict[str, float]:
    return {each.source: each.weight for each in router.sources()}


# ---- the weight ----


class Oracle:
    """The definition, from the whole history at every reward."""

    def __init__(self, limits: SourceLimits) -> None:
        self.limits = limits
        self.history: list[tuple[str, float]] = []
        self.middle: float | None = None
        self.active = 0

    def sums(self, source: str) -> tuple[float, float, float, float]:
        """Traffic; count, mean and standard error of the surprise. A reward fades with every later one, and faster with its source's."""
        now, later = len(self.history), 0
        traffic = count = even = total = squares = 0.0
        for at in range(now - 1, -1, -1):
            who, surprise = self.history[at]
            if who != source:
                continue
            age = math.exp(-(now - 1 - at) / 1000)
            faded = age * (1 - self.limits.momentum) ** later
            traffic, count, even = traffic + age, count + faded, even + faded**2
            total, squares = total + faded * surprise, squares + faded * surprise**2
            later += 1
        mean = total / count
        variance = (squares - count * mean**2 + 2.5) / (count + 10)
        return traffic, count, mean, math.sqrt(variance / min(count**2 / even, 2 * count))

    def weigh(self, source: str, surprise: float) -> float:
        self.history.append((source, surprise))
        known = {who: self.sums(who) for who in {who for who, _ in self.history}}
        if len(self.history) % 16 == 0:
            means = [mean for _, count, mean, _ in known.values() if count >= 10]
            self.middle = median(means) if len(means) >= self.limits.min_sources else None
            self.active = sum(traffic >= 0.5 for traffic, *_ in known.values())
        traffic, count, mean, error = known[source]
        if source in self.limits.trusted:
            return 1.0
        doubt = self.limits.tolerance + self.limits.deviations * error
        if self.middle is not None and count >= 10 and abs(mean - self.middle) > doubt:
            return 0.0
        total = sum(math.exp(-age / 1000) for age in range(len(self.history)))
        if total < 100 or self.active < self.limits.min_sources:
            return 1.0
        return min(1.0, max(self.limits.cap, 2 / self.active) * total / traffic)


@settings(max_examples=10)  # the oracle is slow
@given(st.integers(0, 2**32 - 1), st.integers(3, 9), st.floats(0.02, 0.9), st.floats(0.01, 0.5))
def test_weights_are_those_of_the_definition(seed: int, count: int, cap: float, momentum: float) -> None:
    """Sources of unlike shares, one of which lies and one of which comes and goes; saved and restored on the way."""
    rng = np.random.default_rng(seed)
    limits = SourceLimits(cap=cap, momentum=momentum, min_sources=int(rng.integers(3, 6)), trusted={"s2"})
    sources, oracle = Sources(limits), Oracle(limits)
    share = rng.dirichlet(np.ones(count))
    for t in range(260):
        k = int(rng.choice(count, p=share))
        if k == 1 and 100 < t < 200:
            continue
        surprise = float(rng.normal(-0.6 if k == 0 and t > 120 else 0.0, 0.2))
        assert sources.weigh(f"s{k}", surprise) == pytest.approx(oracle.weigh(f"s{k}", surprise), abs=1e-9)
        if t == 150:
            kept, sources = sources.state(), Sources(limits)
            sources.restore(kept)
    for each in sources.report():
        traffic, _, mean, _ = oracle.sums(each.source)
        assert each.rewards == sum(who == each.source for who, _ in oracle.history)
        assert each.share == pytest.approx(traffic / sum(oracle.sums(s)[0] for s in {who for who, _ in oracle.history}))
        assert each.surprise == pytest.approx(mean, abs=1e-9)


@pytest.mark.parametrize("count", [5, 7, 20, 300])
def test_equal_and_honest_sources_count_in_full(count: int) -> None:
    rng, sources = np.random.default_rng(count), Sources(SourceLimits())
    for k in rng.integers(count, size=6000):
        p = rng.choice([0.05, 0.5, 0.9])
        assert sources.weigh(f"s{k}", float(rng.random() < p) - p) == 1


@pytest.mark.parametrize("count", [1, 2, 4])
def test_too_few_sources_are_never_limited(count: int) -> None:
    rng, sources = np.random.default_rng(count), Sources(SourceLimits())
    for _ in range(3000):
        k = int(rng.integers(5)) and int(rng.integers(count))
        assert sources.weigh(f"s{k}", -1.0 if k == 0 else 0.0) == 1


def test_a_busy_source_counts_as_its_cap() -> None:
    """Four rewards in ten, of twenty sources: together they count as a tenth of all would."""
    rng, sources = np.random.default_rng(1), Sources(SourceLimits())
    seen = [(k, sources.weigh(f"s{k}", float(rng.normal(0, 0.1)))) for k in rng.choice(20, p=[0.4] + [0.6 / 19] * 19, size=4000)]
    late = [weight for k, weight in seen[1000:] if k == 0]
    assert np.mean(late) == pytest.approx(0.25, abs=0.02)
    assert {weight for k, weight in seen if k} == {1.0}


def test_sources_that_are_remembered_are_bounded() -> None:
    sources = Sources(SourceLimits(max_sources=10))
    for t in range(300):
        sources.weigh(f"s{t % 12 if t % 2 else 0}", 0.0)
        assert len(sources.report()) <= 10
    assert {each.source for each in sources.report()} >= {"s0", f"s{299 % 12}"}


# ---- through a router ----


@pytest.mark.parametrize("stored", [False, True])
def test_limits_change_nothing_without_sources(stored: bool, tmp_path: Path) -> None:
    outs = []
    for limits in (SourceLimits(), SourceLimits(cap=0.001, tolerance=1e-6, deviations=1e-6), None):
        with Router(ARMS, store=tmp_path / f"{len(outs)}.db" if stored else None, sources=limits) as router:
            world = Clusters(0)
            for _ in range(200):
                x, best = world.draw()
                d = router.route(x)
                router.feedback(d.id, float(d.index == best))
            assert router.sources() == []
            outs.append(bits(router))
    assert outs[0] == outs[1] == outs[2]


def test_a_source_that_lies_is_not_learned_from_until_it_agrees_again() -> None:
    world, router = Clusters(0), Router(ARMS)
    honest(router, world, 800)
    for t in range(400):
        x, best = world.draw()
        d = router.route(x)
        right = float(d.index == best)
        router.feedback(d.id, 1 - right if t % 8 == 0 else right, source=f"s{t % 8}")
    found = {each.source: each for each in router.sources()}
    assert found["s0"].quarantined
    assert found["s0"].surprise < -0.3
    assert not any(each.quarantined for name, each in found.items() if name != "s0")
    assert found == {each["source"]: type(found["s0"])(**each) for each in router.stats()["sources"]}

    x, best = world.draw()
    d = router.route(x)
    before, learned = router.engine.state(), router.stats()["learned"]
    assert router.feedback(d.id, float(d.index != best), source="s0")
    after = router.engine.state()
    assert all(np.array_equal(before[name], after[name]) for name in before if not name.startswith("sources."))
    assert router.stats()["learned"] == learned

    honest(router, world, 1600)
    assert weights(router)["s0"] == 1


def test_a_hostile_source_does_no_harm_that_lasts() -> None:
    """A third of the traffic of eight sources is inverted: with limits the right arms go on being found, without them not."""
    right = {}
    for limits in (SourceLimits(), None):
        world, router, late = Clusters(3), Router(ARMS, sources=limits), []
        rng = np.random.default_rng(5)
        for t in range(3000):
            x, best = world.draw()
            d = router.route(x)
            source = int(rng.choice(8, p=[0.4] + [0.6 / 7] * 7))
            reward = float(d.index == best)
            late.append(reward)
            router.feedback(d.id, 1 - reward if source == 0 and t >= 1000 else reward, source=f"s{source}")
        right[limits is None] = np.mean(late[1000:])
    assert right[False] > 0.97
    assert right[True] < right[False] - 0.02


def test_a_trusted_source_is_neither_capped_nor_doubted() -> None:
    world, router = Clusters(0), Router(ARMS, sources=SourceLimits(trusted=["s0"]))
    honest(router, world, 800)
    for t in range(800):
        x, best = world.draw()
        d = router.route(x)
        right = float(d.index == best)
        router.feedback(d.id, 1 - right if t % 2 == 0 else right, source=f"s{t % 2 * (t % 7 + 1)}")
        assert weights(router)["s0"] == 1


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("source", [3, b"s", "", "x" * 256, "a\0b", "\ud800"])
def test_a_source_that_is_none_changes_nothing(source: Any, stored: bool, tmp_path: Path) -> None:
    with Router(ARMS, store=tmp_path / "s.db" if stored else None) as router:
        honest(router, Clusters(0), 20)
        d = router.route(Clusters(1).draw()[0])
        before = bits(router)
        with pytest.raises((SonaTypeError, SonaValueError), match="source"):
            router.feedback(d.id, 1.0, source=source)
        assert bits(router) == before
        assert router.feedback(d.id, 1.0, source="x" * 255)


@pytest.mark.parametrize(
    "wrong",
    [
        {"cap": 0.0},
        {"cap": 1.5},
        {"cap": math.nan},
        {"tolerance": -1.0},
        {"deviations": "3"},
        {"momentum": 1.0},
        {"momentum": 0.0},
        {"min_sources": 2},
        {"min_sources": 5.0},
        {"max_sources": 4},
    ],
)
def test_limits_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(SonaValueError, match=next(iter(wrong))):
        SourceLimits(**wrong)


@pytest.mark.parametrize("trusted", ["abc", [1]])
def test_trusted_sources_are_checked(trusted: Any) -> None:
    with pytest.raises(SonaTypeError, match="trusted"):
        SourceLimits(trusted=trusted)


# ---- score, weight ----


def test_a_score_is_the_surprise_of_learning_and_learns_nothing() -> None:
    world, router = Clusters(2), Router(ARMS)
    policy = router.engine.policy
    assert policy is not None
    for _ in range(100):
        x, best = world.draw()
        d = router.route(x)
        reward, before = float(d.index == best), bits(router)
        scored = policy.score(d.id, reward)
        assert scored == pytest.approx(reward - router.stats()["confidence"] * d.scores[d.index], abs=0.35)
        assert bits(router) == before
        mean = router.stats()["surprise"]
        policy.learn(d.id, reward)
        assert scored == pytest.approx(mean + (router.stats()["surprise"] - mean) / 0.02, abs=1e-6)
        assert policy.score(d.id, reward) is None
        assert policy.score(d.id, 1 - reward) == 1 - 2 * reward
    assert policy.score(99999, 1.0) is None


def test_weight_scales_the_evidence_of_the_guard() -> None:
    """Where the models disagree, the log odds move by the weight times what a full reward moves them by."""
    moved = {}
    for weight in (1.0, 0.5, 0.1):
        policy = Router(ARMS).engine.policy
        assert policy is not None
        before = policy.state()["guard"]
        policy.recall(7, Clusters(0).draw()[0], 2, 0.7, chance=(1.0, 0.0, 0.0), own=True, agreed=False)
        assert policy.learn(7, 0.0, weight)
        after = policy.state()["guard"]
        assert after[4] == pytest.approx(weight)
        moved[weight] = (after[0] - after[1]) - (before[0] - before[1])
    assert moved[1.0] < -0.01
    assert moved[0.5] == pytest.approx(moved[1.0] / 2, rel=0.02)
    assert moved[0.1] == pytest.approx(moved[1.0] / 10, rel=0.1)
    with pytest.raises(SonaValueError, match="weight"):
        policy.learn(7, 0.5, 0.0)


# ---- kept ----


CRASH = """
    import os, sys
    from sona.loops.journal import Journal
    from test_limits import ARMS, attacked
    from sona import Router

    Journal.__init__.__kwdefaults__["save_every"] = int(sys.argv[2])
    attacked(Router(ARMS, store=sys.argv[1]), 700)
    os._exit(7)
"""


def attacked(router: Router, rounds: int) -> None:
    """Eight sources of which the busiest lies from half of the time on; the last reward is waited for."""
    world, rng = Clusters(0), np.random.default_rng(4)
    for t in range(rounds):
        x, best = world.draw()
        d = router.route(x)
        source, right = int(rng.choice(8, p=[0.3] + [0.1] * 7)), float(d.index == best)
        router.feedback(d.id, 1 - right if source == 0 and t > rounds / 2 else right, source=f"s{source}", sync=t == rounds - 1)


@pytest.mark.parametrize("save_every", [10_000, 250])
def test_a_replay_after_a_crash_gives_the_same_weights(save_every: int, tmp_path: Path, run_python: RunPython) -> None:
    run_python(CRASH, tmp_path / "s.db", save_every, code=7)
    whole = Router(ARMS)
    attacked(whole, 700)
    assert weights(whole)["s0"] == 0
    with Router(ARMS, store=tmp_path / "s.db") as router:
        for again, first in zip(router.sources(), whole.sources(), strict=True):
            assert again.source == first.source
            assert astuple(again)[1:] == pytest.approx(astuple(first)[1:], abs=1e-5)
        x = np.stack([Clusters(8).draw()[0] for _ in range(20)])
        np.testing.assert_allclose(router.apply_batch(x), whole.apply_batch(x), atol=1e-5)


def test_a_restart_keeps_what_is_known_of_sources(tmp_path: Path) -> None:
    with Router(ARMS, store=tmp_path / "s.db") as router:
        attacked(router, 500)
        known = router.sources()
    with Router(ARMS, store=tmp_path / "s.db") as router:
        assert router.sources() == known
        router.engine.save(tmp_path / "snapshot")
    with Router(ARMS, store=tmp_path / "s.db", sources=None) as router:
        assert router.sources() == []


def test_inspect_counts_the_rewards_of_each_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Router(ARMS, store=tmp_path / "s.db") as router:
        honest(router, Clusters(0), 33, sources=8)
    assert main(["inspect", str(tmp_path / "s.db")]) == 0
    assert "rewards from 8 sources: s0 5, s1 4, s2 4, s3 4, s4 4, ..." in capsys.readouterr().out
    assert main(["inspect", "--json", str(tmp_path / "s.db")]) == 0
    assert json.loads(capsys.readouterr().out)["namespaces"]["default"]["sources"] == {f"s{k}": 4 + (k == 0) for k in range(8)}


@pytest.mark.parametrize(
    "damage",
    [
        {"records": np.full((8, 8), np.nan)},
        {"records": np.zeros((3, 8))},
        {"clock": np.zeros(3)},
        {"names": np.frombuffer(b'["s0"', np.uint8)},
        {"names": np.frombuffer(b'{"s0": 1}', np.uint8)},
        {"names": np.frombuffer(b'["", "a", "b", "c", "d", "e", "f", "g"]', np.uint8)},
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(damage: dict[str, Any]) -> None:
    sources = Sources(SourceLimits())
    for t in range(80):
        sources.weigh(f"s{t % 8}", 0.0)
    before = sources.report()
    with pytest.raises((SonaValueError, SonaTypeError), match="source"):
        sources.restore(sources.state() | damage)
    assert sources.report() == before
