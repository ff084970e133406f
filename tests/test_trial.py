"""A candidate on live traffic: what is served, what is learned, how it is decided, and that neither restart nor kill loses any of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import RunPython
from reference import Clusters

from sona import Router, SonaStoreError, SonaValueError, SonaVersionError, Version
from sona.adapters import Factors
from sona.cli import main
from sona.loops.background import BackgroundLoopConfig
from sona.loops.gate import GateConfig
from sona.patterns import PatternConfig

QUICK = GateConfig(n_min=100, n_max=4000)
CONFIG = BackgroundLoopConfig(patterns=PatternConfig(embedding_dim=20, k_clusters=6), min_trajectories=50, gate=QUICK)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s.db"


def make(world: Clusters, store: Any = None, config: BackgroundLoopConfig = CONFIG, **options: Any) -> Router:
    return Router(world.arms, store=store, background=config, **options)


def serve(router: Router, world: Clusters, rounds: int, *, right: float = 1.0, wrong: float = 0.0, seed: int = 0) -> list[Any]:
    rng, decisions = np.random.default_rng(seed), []
    for _ in range(rounds):
        x, k = world.draw()
        d = router.route(x)
        router.feedback(d.id, float(rng.random() < (right if d.arm == k else wrong)))
        decisions.append(d)
    return decisions


def good(world: Clusters) -> Factors:
    """The correction of a router that has learned the world."""
    router = make(world, config=BackgroundLoopConfig(patterns=CONFIG.patterns))
    serve(router, world, 600)
    return Factors.of(router.engine.adapters[0])


def bad(world: Clusters) -> Factors:
    """A large random correction."""
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(2, 5, world.arms.shape[1])).astype(np.float32)
    return Factors(rows[0], rows[1], np.zeros(5, np.float32))


def propose(router: Router, factors: Factors, level: float = 1.0) -> Version:
    """Put a correction on trial, as an undecided cycle does."""
    engine = router.engine
    kept = engine._service.versions.add(
        Version(name=engine.name, created=0.0, verdict="undecided", reason="made for a test", factors=factors),
    )
    engine._service.begin_trial(kept, level)
    return kept


def arrays(router: Router) -> dict[str, bytes]:
    return {name: np.ascontiguousarray(value).tobytes() for name, value in router.engine.state().items()}


def learner(router: Router) -> dict[str, npt.NDArray[Any]]:
    return {name: value for name, value in router.engine.state().items() if not name.startswith("trial.")}


# ---- a cycle begins a trial ----


def test_an_undecided_candidate_goes_on_trial_and_no_other_is_made_meanwhile() -> None:
    world = Clusters(3)
    router = make(world)
    serve(router, world, 300)
    before = learner(router)
    result = router.background_learn()
    assert result.verdict == "undecided"
    assert result.version is not None
    trial = router.engine.trial
    assert trial is not None
    assert trial.verdict == "undecided"
    assert trial.evidence["version"] == result.version.number
    assert all((value == before[name]).all() for name, value in learner(router).items())
    serve(router, world, 60)
    again = router.background_learn()
    assert again.status == "completed"
    assert again.version is None
    assert f"version {result.version.number} is on trial" in again.reason
    assert again.patterns_extracted == 6


@pytest.mark.parametrize("options", [{"explore": "softmax"}, {"config": replace(CONFIG, trial=False)}])
def test_no_trial_where_the_log_decides_or_none_is_wanted(options: dict[str, Any]) -> None:
    world = Clusters(3)
    router = make(world, **options)
    serve(router, world, 300)
    assert router.background_learn().version is not None
    assert router.engine.trial is None


# ---- what is served ----


@pytest.mark.parametrize("guard", [False, True])
def test_only_where_the_arms_differ_anything_changes(guard: bool) -> None:
    world = Clusters(4)
    router = make(world, guard=guard)
    propose(router, good(world))
    candidate = router.engine._learners.trial.candidate  # type: ignore[union-attr]
    shown = {"candidate": 0, "incumbent": 0}
    for _ in range(400):
        x, _ = world.draw()
        theirs, ours = int(candidate.predict(x[None])[0]), int(router.predict(x[None])[0])
        d = router.route(x)  # without a reward nothing is learned
        if theirs == ours:
            assert d.index == ours or guard
        elif d.index in (theirs, ours):
            side = "candidate" if d.index == theirs else "incumbent"
            shown[side] += 1
            assert d.propensity == pytest.approx(0.5) if not guard else 0.25 <= d.propensity < 1
    assert min(shown.values()) > 30
    assert abs(shown["candidate"] - shown["incumbent"]) < 5 * sum(shown.values()) ** 0.5


def test_the_learner_learns_as_if_the_candidates_arms_were_explored() -> None:
    """Same decisions and rewards: with the candidate away the learner is what a policy becomes that is told them as another's."""
    world = Clusters(5)
    router = make(world, guard=False)
    twin = make(world, guard=False)
    propose(router, good(world))
    for _ in range(150):
        x, k = world.draw()
        d = router.route(x)
        reward = float(d.arm == k)
        router.feedback(d.id, reward)
        twin.warm_start([(x, d.arm, reward)])
    for name, value in learner(twin).items():
        if name.startswith("layer0"):
            np.testing.assert_allclose(value, learner(router)[name], atol=1e-5)


# ---- how it ends ----


def handicapped(world: Clusters, store: Any = None, config: BackgroundLoopConfig = CONFIG) -> Router:
    """A router that has to unlearn a large random correction, without a guard that would serve the frozen model meanwhile."""
    router = make(world, store, config, guard=False)
    worse = bad(world)
    router.engine.adapters[0].assign(worse.down, worse.up, worse.offset)
    return router


def test_a_better_candidate_is_accepted_with_what_it_has_learned_meanwhile() -> None:
    world = Clusters(6)
    router = handicapped(world)
    kept = propose(router, good(world))
    adapter = router.engine._learners.trial.candidate.adapter  # type: ignore[union-attr]
    before, served = Factors.of(adapter), None
    for _ in range(2000):
        serve(router, world, 1)
        if router.engine.trial is None:
            served = Factors.of(router.engine.adapters[0])
            break
    assert served is not None
    assert served.digest == Factors.of(adapter).digest != before.digest
    *_, replaced, last = sorted(router.engine.versions(), key=lambda v: v.verdict == "accept")
    assert (last.verdict, last.published, last.window["candidate"]) == ("accept", True, kept.number)
    assert last.factors.digest == served.digest
    assert last.metrics["duel"]["accept_wealth"] >= 20
    assert "it does not lose" in last.reason
    assert replaced.verdict == "served"
    right = [d.arm == k for d, k in ((router.route(x), k) for x, k in (world.draw() for _ in range(200)))]
    assert np.mean(right) > 0.9
    router.engine.rollback(replaced.number)
    assert Factors.of(router.engine.adapters[0]).digest == replaced.factors.digest


def test_a_worse_candidate_is_rejected_and_kept_for_inspection() -> None:
    world = Clusters(7)
    router, guarded = make(world), make(world)
    serve(router, world, 400)
    guarded.engine.restore(router.engine.state())
    propose(router, bad(world))
    rounds = 0
    while router.engine.trial is not None:
        serve(router, world, 1)
        rounds += 1
        assert rounds < 4000
    last = router.engine.versions()[-1]
    assert (last.verdict, last.published) == ("reject", False)
    assert rounds >= QUICK.n_min
    assert router.engine.policy is not None
    assert router.engine.policy.rival is None
    assert "trial.about" not in router.engine.state()


def test_a_trial_that_finds_nothing_expires() -> None:
    world = Clusters(8)
    config = replace(CONFIG, gate=GateConfig(n_min=50, n_max=60))
    router = make(world, config=config)
    serve(router, world, 100)
    propose(router, Factors.of(router.engine.adapters[0]))  # the same model
    serve(router, world, 60)
    assert router.engine.trial is None
    assert router.engine.versions()[-1].verdict == "expired"


def test_any_version_may_be_put_on_trial() -> None:
    world = Clusters(21)
    router = make(world)
    first = propose(router, good(world))
    second = router.engine._service.versions.add(replace(first, factors=bad(world)))
    serve(router, world, 20)
    assert router.engine.start_trial(second.id).evidence["version"] == second.number
    trial = router.engine.trial
    assert trial is not None
    assert trial.evidence["duel"]["n"] == 0
    with pytest.raises(SonaValueError, match="version: expected one of"):
        router.engine.start_trial(17)
    explorer = make(world, explore="softmax")
    explorer.engine._service.versions.add(first)
    with pytest.raises(SonaValueError, match="explore='greedy'"):
        explorer.engine.start_trial(1)
    router.engine.stop_trial()
    assert router.engine.trial is None


def test_publishing_a_version_ends_the_trial() -> None:
    world = Clusters(9)
    router = make(world)
    kept = propose(router, good(world))
    assert router.engine.trial is not None
    router.engine.publish(kept.number)
    assert router.engine.trial is None
    assert router.route(world.draw()[0]).propensity > 0


def test_rewards_of_an_earlier_trial_do_not_count_for_the_next() -> None:
    world = Clusters(10)
    router = make(world, guard=False)
    propose(router, good(world))
    early = [router.route(world.draw()[0]) for _ in range(20)]
    router.engine.stop_trial()
    assert router.engine.trial is None
    propose(router, good(world))
    for d in early:
        assert router.feedback(d.id, 1.0)
    trial = router.engine.trial
    assert trial is not None
    assert trial.evidence["duel"]["n"] == 0
    serve(router, world, 5)
    again = router.engine.trial
    assert again is not None
    assert again.evidence["duel"]["n"] == 5


def test_the_first_reward_of_a_decision_counts_and_a_revision_teaches_the_candidate() -> None:
    world = Clusters(11)
    router = make(world)
    propose(router, good(world))
    candidate = router.engine._learners.trial.candidate  # type: ignore[union-attr]
    d = router.route(world.draw()[0])
    router.feedback(d.id, 1.0)
    rows = candidate.adapter.info()["total"]
    router.feedback(d.id, 1.0)
    assert candidate.adapter.info()["total"] == rows
    router.feedback(d.id, 0.0)
    assert candidate.adapter.info()["total"] == rows + 1
    trial = router.engine.trial
    assert trial is not None
    assert trial.evidence["duel"]["n"] == 1


def test_costs_are_part_of_what_is_compared() -> None:
    """Both models earn the same reward; one of them at a lower cost."""
    world = Clusters(12)
    router = Router(world.arms, cost={0: 0.5}, background=CONFIG, guard=False)
    trial_of = propose(router, good(world))
    trial = router.engine._learners.trial
    assert trial is not None
    assert trial.span == (0.0, 0.5)
    assert trial.gate.config.tolerance == pytest.approx(QUICK.tolerance / 1.5)
    seen: list[float] = []
    real = trial.gate.record
    trial.gate.record = lambda *args: seen.append(args[1]) or real(*args)  # type: ignore[method-assign, func-returns-value]
    for d in serve(router, world, 200, right=1.0, wrong=1.0):
        assert seen.pop(0) == pytest.approx((1.5 - 0.5 * (d.arm == 0)) / 1.5)
    assert trial_of.number == 1


def test_arms_may_come_and_go() -> None:
    world = Clusters(13)
    router = make(world)
    propose(router, good(world))
    router.remove_arm(2)
    router.add_arm("new", np.ones(20))
    candidate = router.engine._learners.trial.candidate  # type: ignore[union-attr]
    assert candidate.arms == router.arms
    rng = np.random.default_rng(0)
    for _ in range(50):
        d = router.route(rng.normal(size=20))
        assert router.feedback(d.id, float(d.arm == "new"))
    trial = router.engine.trial
    assert trial is not None
    assert trial.evidence["duel"]["n"] == 50


def test_a_disabled_router_serves_the_frozen_model_and_the_trial_waits() -> None:
    world = Clusters(14)
    router = make(world)
    propose(router, good(world))
    router.engine.enabled = False
    decisions = serve(router, world, 30)
    assert all(d.propensity == 1 for d in decisions)
    router.engine.enabled = True
    trial = router.engine.trial
    assert trial is not None
    assert trial.evidence["duel"]["n"] == 0


# ---- what lasts ----


@pytest.mark.parametrize("where", ["snapshot", "store"])
def test_a_trial_goes_on_where_it_was(where: str, path: Path) -> None:
    world = Clusters(15)
    factors = good(world)
    first = make(world, path if where == "store" else None)
    propose(first, factors)
    serve(first, world, 60)
    kept = arrays(first)
    if where == "store":
        first.close()
        second = make(world, path)
    else:
        second = make(world)
        second.engine.restore(first.engine.state())
    assert arrays(second) == kept
    trial = second.engine.trial
    assert trial is not None
    assert trial.evidence["duel"]["n"] == 60
    serve(second, world, 60)
    trial = second.engine.trial
    assert trial is None or trial.evidence["duel"]["n"] == 120
    second.close()


CRASH = """
    import os, sys
    from reference import Clusters
    from test_trial import good, make, propose, serve

    world = Clusters(16)
    router = make(world, sys.argv[1])
    propose(router, good(world))
    serve(router, world, 70)
    router.flush()
    os._exit(7)
"""


def test_a_process_that_ends_without_close_loses_no_evidence(path: Path, run_python: RunPython) -> None:
    run_python(CRASH, path, code=7)
    world = Clusters(16)
    twin = make(world)
    propose(twin, good(world))
    serve(twin, world, 70)
    with make(world, path) as router:
        found, want = router.engine.trial, twin.engine.trial
        assert found is not None
        assert want is not None
        assert found.evidence["duel"] == pytest.approx(want.evidence["duel"])
        for name, value in twin.engine.state().items():
            if name.startswith("trial.policy") and value.dtype.kind == "f":
                np.testing.assert_allclose(value, router.engine.state()[name], atol=1e-5)


def test_decisions_of_a_follower_count(path: Path) -> None:
    world = Clusters(17)
    with make(world, path) as leader:
        propose(leader, good(world))
        with make(world, path) as follower:
            assert follower.engine.journal is not None
            assert not follower.engine.journal.leading
            assert follower.engine.trial is not None
            decisions = serve(follower, world, 40)
            assert any(d.propensity < 1 for d in decisions)
            follower.flush()
            assert leader.engine.journal is not None
            leader.engine.journal.poll()
            trial = leader.engine.trial
            assert trial is not None
            assert trial.evidence["duel"]["n"] == 40
            assert trial.evidence["duel"]["differing"] > 0


def test_a_follower_ends_a_trial_that_the_leader_has_ended(path: Path) -> None:
    """Also where no reward lies between."""
    world = Clusters(23)
    with make(world, path) as leader:
        propose(leader, good(world))
        with make(world, path) as follower:
            assert follower.engine.trial is not None
            leader.engine.stop_trial()
            assert follower.engine.journal is not None
            follower.engine.journal.poll()
            assert follower.engine.trial is None


def test_a_store_that_cannot_be_written_puts_the_decision_off(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = Clusters(18)
    with handicapped(world, path) as router:
        propose(router, good(world))
        assert router.engine.journal is not None

        def fail(**_: Any) -> None:
            raise SonaStoreError("not now")

        with monkeypatch.context() as patched:
            patched.setattr(router.engine.journal, "save", fail)
            for _ in range(2000):
                serve(router, world, 1)
                router.engine._service._decide_at = 0.0
                trial = router.engine.trial
                assert trial is not None
                if trial.verdict == "accept":
                    break
            serve(router, world, 5)
            assert trial.verdict == "accept"
            assert router.engine.trial is not None
            assert [v.verdict for v in router.engine.versions()].count("accept") == 1
            assert not any(v.published for v in router.engine.versions())
        router.engine._service._decide_at = 0.0
        serve(router, world, 1)
        assert router.engine.trial is None
        assert [v.verdict for v in router.engine.versions() if v.published] == ["accept"]


@pytest.mark.parametrize("damage", ["about", "down", "span", "gate"])
def test_a_damaged_state_is_refused_and_changes_nothing(damage: str) -> None:
    world = Clusters(19)
    router = make(world)
    propose(router, good(world))
    serve(router, world, 10)
    kept = arrays(router)
    state = router.engine.state()
    if damage == "down":
        state["trial.down"] = state["trial.down"][:, :3]
    elif damage == "about":
        state["trial.about"] = np.frombuffer(b"{", np.uint8)
    else:
        text = state["trial.about"].tobytes().decode().replace(f'"{damage}"', '"other"')
        state["trial.about"] = np.frombuffer(text.encode(), np.uint8)
    with pytest.raises(SonaVersionError, match="state of a trial"):
        router.engine.restore(state)
    assert arrays(router) == kept


def test_bad_arguments_are_refused() -> None:
    world = Clusters(20)
    router, other = make(world), make(world, explore="softmax")
    policy, explorer = router.engine.policy, other.engine.policy
    assert policy is not None
    assert explorer is not None
    with pytest.raises(SonaValueError, match="trial: expected 1 to 255, got 256"):
        policy.contest(explorer, 0.5, 256, None)
    with pytest.raises(SonaValueError, match="share=1"):
        policy.contest(explorer, 1.0, 1, None)
    with pytest.raises(SonaValueError, match="explore='softmax'"):
        explorer.contest(policy, 0.5, 1, None)
    assert policy.rival is None


def test_the_command_line_shows_a_trial_and_ends_it_by_a_rollback(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = Clusters(22)
    with make(world, path) as router:
        kept = propose(router, good(world))
        serve(router, world, 20)
        assert router.stats()["engine"]["trial"]["version"] == kept.number
    assert main(["inspect", str(path)]) == 0
    assert f"version {kept.number} on trial" in capsys.readouterr().out
    assert main(["rollback", str(path), str(kept.number)]) == 0
    with make(world, path) as router:
        assert router.engine.trial is None
        assert Factors.of(router.engine.adapters[0]).digest == kept.factors.digest
        assert router.stats()["engine"]["trial"] is None
