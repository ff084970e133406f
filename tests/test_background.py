"""Promises of the background loop: it judges on decisions nobody learned from, serves what is accepted alone, and fails without a trace."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RunPython
from reference import Clusters

from sona import Router, SonaEngine
from sona.adapters import Factors
from sona.config import SonaConfig
from sona.errors import SonaCorruptError, SonaError, SonaStoreError, SonaValueError
from sona.loops import background
from sona.loops.background import BackgroundLoopConfig, BackgroundResult
from sona.loops.gate import GateConfig
from sona.loops.replay import Mark, Replay, Rows
from sona.loops.ruling import Ruling
from sona.patterns import PatternConfig, ReasoningBank

Array = np.ndarray[Any, Any]
SMALL = BackgroundLoopConfig(patterns=PatternConfig(embedding_dim=20, k_clusters=6), min_trajectories=50, trial=False)


@pytest.fixture
def world() -> Clusters:
    return Clusters(3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sona.db"


def make_router(world: Clusters, store: Any = None, config: BackgroundLoopConfig = SMALL, **options: Any) -> Router:
    return Router(world.arms, store=store, background=config, **({"guard": False} | options))


def serve(router: Router, world: Clusters, rounds: int = 300) -> list[int]:
    ids = []
    for _ in range(rounds):
        x, k = world.draw()
        d = router.route(x)
        router.feedback(d.id, float(d.arm == k))
        ids.append(d.id)
    return ids


def accept_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "logged_duel", lambda *_, **__: Ruling("accept", "the duel accepts", {"n": 1}))


def reject_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "screen", lambda *_, **__: Ruling("reject", "the screen rejects", {"n": 1}))


def everything(router: Router) -> dict[str, bytes]:
    """State of the learner and of the loop."""
    loop, engine = router.engine.loop_b, router.engine
    assert loop.window is not None
    arrays = {**engine.state(), **{f"bank.{name}": value for name, value in loop.patterns.bank.state().items()}}
    found = {name: np.ascontiguousarray(value).tobytes() for name, value in arrays.items()}
    found["versions"] = repr([v.as_dict() for v in engine.versions()]).encode()
    found["loop"] = repr(
        [loop._cycles, loop._counted, [m.before for m in loop._marks], loop.window.tasks.state(), loop.window.offered]
    ).encode()
    return found


# ---- configuration and results ----


def test_defaults_are_the_roadmaps_but_for_the_rate() -> None:
    config = BackgroundLoopConfig()
    assert (config.extraction_interval, config.min_trajectories, config.base_lora_lr) == (3600.0, 100, 0.3)
    skipped = BackgroundResult.skipped("insufficient trajectories")
    assert (skipped.status, skipped.trajectories_processed, skipped.patterns_extracted, skipped.elapsed) == (
        "skipped: insufficient trajectories",
        0,
        0,
        0.0,
    )


@pytest.mark.parametrize(
    "bad",
    [
        {"min_trajectories": 0},
        {"passes": 0},
        {"replay_rows": 0},
        {"reservoir_rows": -1},
        {"base_lora_lr": 0.0},
        {"least_propensity": 0.0},
        {"least_propensity": 0.6},
        {"base_lora_lr": 1.5},
        {"extraction_interval": -1.0},
        {"serve": "always"},
        {"seed": -1},
    ],
)
def test_bad_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(SonaValueError, match=next(iter(bad))):
        BackgroundLoopConfig(**bad)


def test_patterns_of_another_width_are_refused() -> None:
    with pytest.raises(SonaValueError, match="embedding_dim=8, got 20"):
        SonaEngine(SonaConfig(hidden_dim=8), background=SMALL)


# ---- a cycle ----


def test_too_few_rewards_skip_the_cycle_and_wait_for_the_next_one(world: Clusters) -> None:
    router = make_router(world)
    serve(router, world, 49)
    before = everything(router)
    assert router.background_learn().status == "skipped: insufficient trajectories, 49 of 50"
    assert everything(router) == before
    serve(router, world, 1)
    result = router.background_learn()
    assert (result.status, result.trajectories_processed) == ("completed", 50)
    serve(router, world, 49)
    assert router.background_learn().status == "skipped: insufficient trajectories, 49 of 50"
    serve(router, world, 1)
    assert router.background_learn().trajectories_processed == 100


def test_a_cycle_finds_the_clusters_and_proposes_a_candidate_that_changes_nothing(world: Clusters) -> None:
    router = make_router(world)
    ids = serve(router, world)
    learned = {name: value.tobytes() for name, value in router.engine.state().items()}
    result = router.background_learn()
    assert result.status == "completed"
    assert result.patterns_extracted == len(router.engine.patterns.bank.patterns) == 6
    assert result.elapsed > 0
    assert result.verdict == "undecided"
    assert result.version is not None
    assert [v.id for v in router.engine.versions()] == [result.version.id]
    assert {name: value.tobytes() for name, value in router.engine.state().items()} == learned
    window = result.version.window
    assert window["replayed"] + window["held_out"] == len(ids)
    assert (window["first_id"], window["last_id"]) == (ids[0], ids[-1])
    assert window["held_out"] >= 60
    assert set(result.version.metrics) >= {"before", "after", "screen", "differing"}
    assert router.engine.publish(result.version).published


@pytest.mark.parametrize("several", [False, True])
def test_what_was_held_out_is_learned_last_in_one_task_and_among_all_rows_in_several(world: Clusters, several: bool) -> None:
    router = make_router(world)
    serve(router, world, 200)
    if several:
        router.engine.loop_b.start_task("another")
    serve(router, world, 200)
    loop, config = router.engine.loop_b, router.engine.loop_b.config
    assert loop.window is not None
    assert router.engine.policy is not None
    rows = loop.window.newest()
    mark, fresh = loop._split(rows)
    replay = Replay(router.engine.policy, mark)
    options: dict[str, Any] = {"passes": config.passes, "step": config.base_lora_lr, "seed": (config.seed, 0)}
    old, new = rows.take(~fresh), rows.take(fresh)
    want = replay.run(old.joined(new), **options) if several else replay.run(new, replay.run(old, **options), **options)
    result = router.background_learn()
    assert result.version is not None
    assert result.version.factors.to_bytes() == want.to_bytes()


def test_no_decision_is_replayed_twice_in_a_pass_and_none_that_judges_before_it_has_judged(
    world: Clusters, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = make_router(world)
    loop = router.engine.loop_b
    real, seen = Replay.run, []

    def spied(self: Replay, rows: Rows, *args: Any, **options: Any) -> Factors:
        seen.append(rows.id.tolist())
        return real(self, rows, *args, **options)

    monkeypatch.setattr(Replay, "run", spied)
    for cycle in range(3):
        loop.start_task(f"task {cycle % 2}")
        serve(router, world, 200)
        seen.clear()
        router.background_learn()
        judged, kept = seen
        kept = kept if cycle else judged + kept  # of one task: the one after the other
        assert len(set(judged)) == len(judged)
        assert len(set(kept)) == len(kept)
        assert loop.window is not None
        rows = loop.window.newest()
        fresh = set(kept) - set(judged)
        assert fresh
        assert min(fresh) > max(judged)
        assert sorted(kept) == rows.id.tolist()


def test_an_accepted_candidate_is_served_and_can_be_rolled_back(world: Clusters, monkeypatch: pytest.MonkeyPatch) -> None:
    accept_everything(monkeypatch)
    router = make_router(world, explore="softmax")
    serve(router, world)
    before = Factors.of(router.engine.adapters[0]).to_bytes()
    result = router.background_learn()
    assert result.version is not None
    assert (result.verdict, result.version.published) == ("accept", True)
    assert Factors.of(router.engine.adapters[0]).to_bytes() == result.version.factors.to_bytes() != before
    old = next(v for v in router.engine.versions() if v.verdict == "served")
    router.engine.rollback(old)
    assert Factors.of(router.engine.adapters[0]).to_bytes() == before


def test_a_rejected_candidate_is_kept_for_inspection(world: Clusters, monkeypatch: pytest.MonkeyPatch) -> None:
    reject_everything(monkeypatch)
    router = make_router(world)
    serve(router, world)
    before = router.engine.adapters[0].down.tobytes()
    result = router.background_learn()
    assert (result.verdict, result.reason) == ("reject", "the screen rejects")
    assert result.version is not None
    assert not result.version.published
    assert router.engine.adapters[0].down.tobytes() == before


# ---- remembered tasks, and candidates that are served without a duel ----


def two_tasks(world: Clusters, config: BackgroundLoopConfig, tolerance: float | None = None) -> Router:
    """A router that has learned the even clusters, then the odd ones, with a cycle in between and none at the end."""
    router = make_router(world, config=config)
    for task in (0, 1):
        router.engine.loop_b.start_task(f"task {task}", tolerance)
        for _ in range(300):
            x, k = world.draw()
            while k % 2 != task:
                x, k = world.draw()
            d = router.route(x)
            router.feedback(d.id, float(d.arm == k))
        if task == 0:
            router.background_learn()
    return router


def settings(**options: Any) -> BackgroundLoopConfig:
    return BackgroundLoopConfig(patterns=SMALL.patterns, min_trajectories=50, **options)


def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates know nothing, and the screen does not mind."""
    nothing = np.zeros((0, 20), np.float32)
    monkeypatch.setattr(Replay, "run", lambda self, *_, **__: Factors(nothing, nothing, nothing[:, 0]))
    monkeypatch.setattr(background, "screen", lambda *_, **__: Ruling("undecided", "passed", {"n": 100, "z": 0.0}))


def test_a_candidate_that_forgets_a_task_is_rejected_and_names_it(world: Clusters, monkeypatch: pytest.MonkeyPatch) -> None:
    router = two_tasks(world, settings(serve="screened"))
    forgetful(monkeypatch)
    result = router.background_learn()
    assert result.verdict == "reject"
    assert "forgets" in result.reason
    assert "'task 0'" in result.reason
    assert result.version is not None
    assert not result.version.published
    about = result.version.metrics["task task 0"]
    assert about["n"] == 200
    assert about["loss"] > about["tolerance"] == 0.05


def test_a_tolerance_is_that_of_its_task(world: Clusters, monkeypatch: pytest.MonkeyPatch) -> None:
    router = two_tasks(world, settings(serve="screened"), tolerance=0.99)
    forgetful(monkeypatch)
    assert router.background_learn().verdict == "accept"
    with pytest.raises(SonaValueError, match="tolerance"):
        router.engine.loop_b.start_task("task 2", 1.5)


def test_the_tolerance_of_the_gate_is_that_of_all_other_tasks(world: Clusters, monkeypatch: pytest.MonkeyPatch) -> None:
    router = two_tasks(world, settings(serve="screened", gate=GateConfig(task_tolerance=0.99)))
    forgetful(monkeypatch)
    assert router.background_learn().verdict == "accept"


def test_few_rows_of_a_task_say_nothing(world: Clusters, monkeypatch: pytest.MonkeyPatch) -> None:
    router = two_tasks(world, settings(serve="screened", reservoir_rows=background.TASK_ROWS - 1))
    forgetful(monkeypatch)
    result = router.background_learn()
    assert result.version is not None
    assert not [name for name in result.version.metrics if name.startswith("task")]


def test_what_passes_is_served_without_a_duel_where_that_is_asked_for(world: Clusters) -> None:
    router = make_router(world, config=settings(serve="screened"), guard=True)
    serve(router, world)
    result = router.background_learn()
    assert result.verdict == "accept"
    assert result.reason.startswith("no duel was asked for: passed the screen")
    assert result.version is not None
    assert result.version.published
    assert router.engine.trial is None
    assert Factors.of(router.engine.adapters[0]).to_bytes() == result.version.factors.to_bytes()


def test_what_could_not_be_screened_is_neither_served_nor_tried(world: Clusters) -> None:
    router = make_router(world, config=settings(serve="screened"))
    serve(router, world, 120)
    result = router.background_learn()
    assert result.verdict == "undecided"
    assert "too few rows to screen" in result.reason
    assert router.engine.trial is None


def test_what_the_screen_rejects_is_not_served_either(world: Clusters, monkeypatch: pytest.MonkeyPatch) -> None:
    reject_everything(monkeypatch)
    router = make_router(world, config=settings(serve="screened"))
    serve(router, world)
    assert router.background_learn().verdict == "reject"


def test_served_candidates_keep_more_of_an_earlier_task() -> None:
    def kept(cycles: bool) -> float:
        found = []
        for seed in range(4):
            world = Clusters(seed, noise=1.0)
            router = two_tasks(world, settings(serve="screened"))
            if cycles:
                assert router.background_learn().verdict is not None
            rows = [world.draw() for _ in range(2000)]
            even = np.array([k % 2 == 0 for _, k in rows])
            found.append((router.predict(np.stack([x for x, _ in rows])) == [k for _, k in rows])[even].mean())
        return float(np.mean(found))

    assert kept(True) > kept(False) + 0.02


def test_the_screen_rejects_what_learned_from_inverted_rewards() -> None:
    rejected = 0
    for seed in range(5):
        world = Clusters(seed)
        router = make_router(world)
        ids = serve(router, world, 400)
        loop = router.engine.loop_b
        assert loop.window is not None
        rows = loop.window.newest()
        mark, fresh = loop._split(rows)
        old = rows.take(~fresh)
        poisoned = Rows(old.id, old.x, old.arm, 1 - old.reward, old.own, old.propensity, old.start, old.candidates)
        replay = Replay(router.engine.policy, mark)
        candidate = replay.run(poisoned, step=1.0, passes=3)
        assert len(ids) == 400
        rejected += loop._judge(replay, candidate, rows.take(fresh), 0.5, explored=False)[0].verdict == "reject"
    assert rejected == 5


def test_a_log_with_exploration_accepts_what_is_better_and_a_greedy_one_never(world: Clusters) -> None:
    config = BackgroundLoopConfig(patterns=SMALL.patterns, least_propensity=0.01)
    router = make_router(world, config=config, explore="softmax", tau=1.0)
    policy, loop = router.engine.policy, router.engine.loop_b
    assert policy is not None
    replay = Replay(policy, Mark.of(policy))  # knows nothing yet
    first, second = (serve(router, world, 1500) for _ in range(2))
    rows = Rows.remembered(policy, 3000)
    candidate = replay.run(rows.take(rows.id <= first[-1]), passes=2)
    fresh = rows.take(rows.id >= second[0])
    accepted, metrics = loop._judge(replay, candidate, fresh, 0.5, explored=True)
    assert accepted.verdict == "accept", accepted.reason
    assert metrics["duel"]["gain"] > 0
    assert metrics["after"]["brier"] < metrics["before"]["brier"]
    greedy, _ = loop._judge(replay, candidate, fresh, 0.5, explored=False)
    assert greedy.verdict == "undecided"
    assert "no chance" in greedy.reason


@pytest.mark.parametrize(("explore", "asked"), [("greedy", False), ("softmax", True), ("thompson", True)])
def test_the_log_is_asked_only_where_the_router_explores(
    world: Clusters, monkeypatch: pytest.MonkeyPatch, explore: Any, asked: bool
) -> None:
    levels = []

    def duel(*_: Any, level: float, **__: Any) -> Ruling:
        levels.append(level)
        return Ruling("undecided", "", {})

    monkeypatch.setattr(background, "logged_duel", duel)
    router = make_router(world, explore=explore, guard=True)
    serve(router, world, 400)
    loop = router.engine.loop_b
    assert loop.window is not None
    rows = loop.window.newest()
    _, fresh = loop._split(rows)
    assert router.background_learn().verdict == "undecided"
    assert bool(levels) == asked
    if asked:  # fixed by other rewards than those that judge
        assert levels == [pytest.approx(rows.reward[~fresh].mean())]


def test_the_judge_sees_only_decisions_that_neither_model_has_learned(world: Clusters, monkeypatch: pytest.MonkeyPatch) -> None:
    router = make_router(world)
    marks: list[Mark] = []
    real = Mark.of
    monkeypatch.setattr(Mark, "of", classmethod(lambda cls, policy: (marks.append(real(policy)), marks[-1])[1]))
    ids = serve(router, world, 500)
    loop = router.engine.loop_b
    assert loop.window is not None
    rows = loop.window.newest()
    mark, fresh = loop._split(rows)
    assert mark in marks
    assert rows.id[fresh].tolist() == [id for id in ids if id >= mark.before]
    assert 0.2 <= fresh.mean() <= 0.4
    # The mark is the learner before the first of them: a twin that stops there has the same correction.
    twin_world = Clusters(3)
    twin = make_router(twin_world)
    serve(twin, twin_world, ids.index(mark.before))
    np.testing.assert_array_equal(twin.engine.adapters[0].down, mark.factors.down)


def test_late_rewards_do_not_make_old_decisions_unseen(world: Clusters) -> None:
    router = make_router(world)
    late = [(router.route(x), k) for x, k in (world.draw() for _ in range(30))]
    serve(router, world, 300)
    for d, k in late:
        router.feedback(d.id, float(d.arm == k))
    loop = router.engine.loop_b
    assert loop.window is not None
    rows = loop.window.newest()
    assert len(rows) == 330
    _, fresh = loop._split(rows)
    assert not set(rows.id[fresh].tolist()) & {d.id for d, _ in late}


def test_marks_before_another_version_are_not_what_it_came_from(world: Clusters) -> None:
    router = make_router(world)
    serve(router, world)
    result = router.background_learn()
    assert result.version is not None
    router.engine.publish(result.version)
    loop = router.engine.loop_b
    assert len(loop._marks) == 1
    assert loop._marks[0].factors.to_bytes() == result.version.factors.to_bytes()
    ids = serve(router, world, 100)
    again = router.background_learn()
    assert again.version is not None
    assert again.version.parent == result.version.number
    assert loop._marks[0].before == ids[0]


def test_cycles_are_the_same_for_the_same_seed() -> None:
    found = []
    for _ in range(2):
        world = Clusters(5)
        router = make_router(world)
        serve(router, world)
        router.background_learn()
        serve(router, world, 100)
        result = router.background_learn()
        assert result.version is not None
        found.append(result.version.factors.to_bytes())
    assert found[0] == found[1]


CYCLES = """
    import sys
    import numpy as np
    from sona import Router
    from sona.loops.background import BackgroundLoopConfig
    from sona.loops.deep import DeepLoopConfig
    from sona.patterns import PatternConfig

    rng, d = np.random.default_rng(0), 64
    centres = rng.normal(size=(12, d))
    background = BackgroundLoopConfig(trial=False, patterns=PatternConfig(embedding_dim=d, k_clusters=30), min_trajectories=50)
    router = Router(rng.normal(size=(6, d)), background=background, deep=DeepLoopConfig(dreams_per_cycle=20), retrieval=200, seed=1)
    for rounds in (1500, 300):
        for k in rng.integers(12, size=rounds):
            decision = router.route(centres[k] + 0.8 * rng.normal(size=d))
            router.feedback(decision.id, float(decision.index == k % 6))
        version = router.background_learn().version
    dreams = router.deep_learn().dreams
    kept = {name: array for name, array in router.engine.state().items() if not name.startswith("drift.time")}
    np.savez(
        sys.argv[1], version=np.frombuffer(version.factors.to_bytes(), np.uint8), dreams=np.concatenate([dream.nodes for dream in dreams]),
        strength=router.engine.memory.graph.strength, patterns=np.stack([p.centroid for p in router.engine.patterns.bank.patterns]), **kept,
    )
"""


@pytest.mark.slow
def test_cycles_are_the_same_with_any_number_of_threads(tmp_path: Path, run_python: RunPython) -> None:
    """Of OpenMP and BLAS, which the clustering and large products use: bit for bit."""
    for threads in ("1", "2", "5"):
        run_python(CYCLES, tmp_path / f"{threads}.npz", OMP_NUM_THREADS=threads, OPENBLAS_NUM_THREADS=threads, MKL_NUM_THREADS=threads)
    one, *others = (np.load(tmp_path / f"{threads}.npz") for threads in ("1", "2", "5"))
    for other in others:
        assert {name for name in one.files if one[name].tobytes() != other[name].tobytes()} == set()


def test_learning_that_is_switched_off_skips_the_cycle(world: Clusters) -> None:
    router = make_router(world)
    serve(router, world)
    router.engine.enabled = False
    assert router.background_learn().status == "skipped: learning is switched off"
    router.engine.enabled = True
    assert router.background_learn().status == "completed"


def test_arms_that_change_during_a_cycle_skip_it(world: Clusters, monkeypatch: pytest.MonkeyPatch) -> None:
    router = make_router(world)
    serve(router, world)
    real = Replay.run

    def meanwhile(self: Replay, *args: Any, **options: Any) -> Factors:
        if "new" not in router.arms:
            router.add_arm("new", np.ones(20))
        return real(self, *args, **options)

    monkeypatch.setattr(Replay, "run", meanwhile)
    assert router.background_learn().status == "skipped: arms were added or removed meanwhile"
    assert router.engine.versions() == []
    assert router.background_learn().status == "completed"


# ---- failures ----


@pytest.mark.parametrize("place", ["replay", "judge", "patterns", "keep", "serve"])
@pytest.mark.parametrize("stored", [False, True])
def test_an_exception_in_a_cycle_leaves_everything_as_it_was(
    world: Clusters, path: Path, monkeypatch: pytest.MonkeyPatch, place: str, stored: bool
) -> None:
    accept_everything(monkeypatch)
    with make_router(world, path if stored else None, explore="softmax") as router:
        serve(router, world)
        router.background_learn()
        serve(router, world)
        before = everything(router)

        def fail(*_: Any, **__: Any) -> None:
            raise SonaStoreError("not now")

        targets = {
            "replay": (Replay, "run"),
            "judge": (background, "screen"),
            "patterns": (ReasoningBank, "extract_patterns"),
            "keep": (type(router.engine._service.versions), "add"),
            "serve": (router.engine.journal, "save") if stored else (type(router.engine._service.versions), "publish"),
        }
        with monkeypatch.context() as patched:
            patched.setattr(*targets[place], fail)
            with pytest.raises(SonaError, match="not now"):
                router.background_learn()
        after = everything(router)
        if place == "serve":  # the candidate is kept, but not served
            assert after.pop("versions") != before.pop("versions")
            assert sum(v.published for v in router.engine.versions()) == 1
        assert after == before
        assert router.background_learn().status == "completed"


def test_a_second_cycle_while_one_is_under_way_is_skipped(world: Clusters, monkeypatch: pytest.MonkeyPatch) -> None:
    router = make_router(world)
    serve(router, world)
    inside, leave = threading.Event(), threading.Event()
    real = Replay.score

    def slow(self: Replay, *args: Any, **options: Any) -> Any:
        inside.set()
        assert leave.wait(60)
        return real(self, *args, **options)

    monkeypatch.setattr(Replay, "score", slow)
    results: list[BackgroundResult] = []
    thread = threading.Thread(target=lambda: results.append(router.background_learn()))
    thread.start()
    assert inside.wait(60)
    assert router.background_learn().status == "skipped: another cycle is under way"
    ids = serve(router, world, 20)  # requests go on
    leave.set()
    thread.join()
    assert results[0].status == "completed"
    assert results[0].version is not None
    assert results[0].version.window["last_id"] < ids[0]
    assert results[0].version.window["late"] == 20  # learned meanwhile, and in the candidate
    serve(router, world, 50)
    assert router.background_learn().status == "completed"


# ---- memory and store ----


def test_the_window_is_bounded(world: Clusters) -> None:
    config = BackgroundLoopConfig(trial=False, patterns=SMALL.patterns, replay_rows=120, reservoir_rows=30, min_trajectories=50)
    router = make_router(world, config=config)
    ids = serve(router, world, 400)
    assert router.background_learn().trajectories_processed == 120
    serve(router, world, 200)
    result = router.background_learn()
    loop = router.engine.loop_b
    assert result.version is not None
    assert loop.window is not None
    assert 0 < result.version.window["reservoir"] <= 30
    assert result.version.window["first_id"] in ids
    assert len(loop.window.tasks.ids) == len(loop.window.reservoir()) == 30


def test_decisions_of_other_processes_are_in_the_window_and_it_stays_bounded(world: Clusters, path: Path) -> None:
    config = BackgroundLoopConfig(patterns=SMALL.patterns, replay_rows=150, min_trajectories=50)
    with make_router(world, path, config) as leader, make_router(world, path, config) as follower:
        own = serve(leader, world, 200)
        others = serve(follower, world, 60)
        follower.flush()
        assert leader.engine.journal is not None
        leader.engine.journal.poll()
        loop = leader.engine.loop_b
        assert loop.window is not None
        rows = loop.window.newest()
        assert len(rows) == 150
        assert set(own[-90:]) < set(rows.id.tolist()) < set(own + others)
        assert set(others) & set(rows.id.tolist())
        _, fresh = loop._split(rows)
        assert set(rows.id[fresh].tolist()) <= set(own)  # nobody knows when the others were learned


def test_each_task_keeps_its_own_decisions(world: Clusters) -> None:
    config = BackgroundLoopConfig(patterns=SMALL.patterns, replay_rows=100, reservoir_rows=25, min_trajectories=50)
    router = make_router(world, config=config)
    loop = router.engine.loop_b
    assert loop.window is not None
    of_task = {}
    for name in ("first", "second", "third"):
        loop.start_task(name)
        of_task[name] = serve(router, world, 150)
        router.background_learn()
    assert list(loop.window.tasks.kept) == ["first", "second", "third"]
    for name in ("first", "second"):
        assert len(loop.window.tasks.kept[name].ids) == 25
        assert set(loop.window.tasks.kept[name].ids) <= set(of_task[name])


def test_a_restart_goes_on_from_the_store(world: Clusters, path: Path) -> None:
    config = BackgroundLoopConfig(trial=False, patterns=SMALL.patterns, replay_rows=200, reservoir_rows=40, min_trajectories=50)
    with make_router(world, path, config) as router:
        ids = serve(router, world, 300)
        router.background_learn()
        loop = router.engine.loop_b
        assert loop.window is not None
        tasks, rows, kept = loop.window.tasks.state(), loop.window.newest(), loop.window.reservoir()
        assert len(kept) == 40
    with make_router(world, path, config) as router:
        loop = router.engine.loop_b
        assert loop.window is not None
        assert loop.window.tasks.state() == tasks
        for found, want in ((loop.window.newest(), rows), (loop.window.reservoir(), kept)):
            for name in ("id", "x", "arm", "reward", "own", "start", "candidates"):
                np.testing.assert_array_equal(getattr(found, name), getattr(want, name))
        more = serve(router, world, 60)
        result = router.background_learn()
        assert result.version is not None
        assert result.trajectories_processed == 200
        assert result.version.window["last_id"] == more[-1]
        assert result.version.window["first_id"] in ids


def test_what_the_store_forgets_is_not_replayed(world: Clusters, path: Path) -> None:
    config = BackgroundLoopConfig(trial=False, patterns=SMALL.patterns, replay_rows=200, reservoir_rows=40, min_trajectories=50)
    with make_router(world, path, config) as router:
        serve(router, world, 300)
        router.background_learn()
        loop = router.engine.loop_b
        assert loop.window is not None
        gone = loop.window.tasks.ids[0]
        assert router.engine.store is not None
        router.engine.store.forget(gone)
        assert gone not in loop.window.reservoir().id.tolist()
        assert len(loop.window.reservoir()) == 39
    with make_router(world, path, config) as router:
        loop = router.engine.loop_b
        assert loop.window is not None
        assert gone not in loop.window.newest().id.tolist()


def test_rewards_before_a_restart_are_no_fresh_ones(world: Clusters, path: Path) -> None:
    with make_router(world, path) as router:
        serve(router, world, 200)
    with make_router(world, path) as router:
        result = router.background_learn()
        assert result.verdict == "undecided"
        assert "no decisions that the learner has not learned from" in result.reason
        assert result.version is not None
        assert result.version.window["held_out"] == 0


def test_damaged_reservoirs_are_reported(world: Clusters, path: Path) -> None:
    with make_router(world, path) as router:
        serve(router, world, 100)
        router.background_learn()
        loop = router.engine.loop_b
        assert loop.window is not None
        assert router.engine.store is not None
        router.engine.store.put_state(loop.window._state_name, b'{"size": 0}', 0)
    with pytest.raises(SonaCorruptError, match="reservoirs"):
        make_router(world, path)


def test_marks_are_bounded(world: Clusters) -> None:
    router = make_router(world)
    serve(router, world, 6000)
    loop = router.engine.loop_b
    assert len(loop._marks) == background.MARKS
    spacing = np.diff([mark.before for mark in loop._marks])
    assert spacing.min() >= 64
    assert spacing.max() <= 256
