"""``sona demo --story``: a world that turns, tasks one after the other, rewards that lie; beside a learner without guards."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from sona.demo.world import World, make_world
from sona.errors import MissingExtraError, SonaValueError
from sona.loops.background import BackgroundLoopConfig
from sona.progress import Progress
from sona.report import write_json
from sona.report.plots import draw_story
from sona.router import Router
from sona.simulate import Adapted, Frozen, Interrupted, Policy, machine

StoryName = Literal["drift", "tasks", "poison"]
STORIES: tuple[StoryName, ...] = get_args(StoryName)
ROUNDS: dict[StoryName, int] = {"drift": 4000, "tasks": 3000, "poison": 4000}
LEAST_ROUNDS = 100
REPORT_FORMAT = 1
CURVE_STEP = 25  # rounds between the points of a curve
FLIPPED = 0.2  # share of wrong rewards in "poison"
HOSTILE = "mallory"
TASKS = 5
CYCLE_EVERY = 500  # rounds between background cycles of "tasks", and one at the end of each
ASK_EVERY = 8  # rounds between looks at the counters


@dataclass
class Script:
    """
    What happens in a story.

    Attributes
    ----------
    x, right : (T, d) float32 and (T,) int64
        Requests, and the arm that is right.
    lies : (T,) bool
        Rounds whose reward is reported as its opposite.
    hostile : (T,) bool
        Rounds that the hostile source reports.
    phases : list of (int, str)
        First round of each part, and what it is.
    held : list of (rows of the held-out digits, their right arms), one for each thing that should be known at the end
    """

    x: npt.NDArray[np.float32]
    right: npt.NDArray[np.int64]
    lies: npt.NDArray[np.bool_]
    hostile: npt.NDArray[np.bool_]
    phases: list[tuple[int, str]]
    held: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]
    names: list[str] = field(default_factory=list)


def run_story(
    story: StoryName,
    *,
    seed: int = 0,
    rounds: int | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: Callable[[int], Progress] | None = None,
) -> dict[str, Any]:
    """
    Play a story to the frozen model, sona, and a learner without guard, drift alarm, limits on sources and cycles.

    Returns
    -------
    dict
        What ``out/report.json`` holds; ``out/figure.png`` is drawn beside it. Accuracies count right answers, whatever was reported.

    Raises
    ------
    SonaValueError
        Unusable options, or ``out`` holds something else.
    sona.simulate.Interrupted
        Ctrl-C; nothing is written.
    """
    if story not in STORIES:
        raise SonaValueError(f"expected a story among {', '.join(STORIES)}, got {story!r}")
    rounds = ROUNDS[story] if rounds is None else rounds
    if not LEAST_ROUNDS <= rounds <= 1_000_000:
        raise SonaValueError(f"expected rounds in {LEAST_ROUNDS}..1000000, got {rounds}")
    if seed < 0:
        raise SonaValueError(f"expected seed >= 0, got {seed}")
    place = Path(f"sona-demo-{story}" if out is None else out)
    _check_place(place)
    world = make_world("shift" if story == "tasks" else "few", seed)
    script = _SCRIPTS[story](world, rounds)
    # Rewards of the tasks are known to be clean, so what is not rejected may serve.
    background = BackgroundLoopConfig(serve="screened" if story == "tasks" else "accepted")
    with (
        Router(world.arms, seed=seed, background=background) as router,
        Router(world.arms, seed=seed, guard=False, drift=False, sources=None) as bare,
    ):
        unguarded = Adapted(bare)
        unguarded.name = "unguarded"
        policies: list[Policy] = [Frozen(world.arms), Adapted(router), unguarded]
        did: list[dict[str, Any]] = []
        with nullcontext() if progress is None else progress(rounds) as bar:
            right, kept = _play(script, policies, router, did, story, bar)
        stats = router.stats()
        report = {
            "format": REPORT_FORMAT,
            "story": story,
            "seed": seed,
            "rounds": rounds,
            "flipped": FLIPPED if story == "poison" else 0.0,
            "phases": [{"start": start, "what": what} for start, what in script.phases],
            "policies": {p.name: _summary(script, right[p.name], p) for p in policies},
            "did": did,
            "alarms": stats["drift"]["alarms"],
            "guard_weights": stats["guard_weights"],
            "sources": stats["sources"],
            "machine": machine(),
            "curve": _curve(right),
            "kept": kept if script.names else None,
            "figure": None,
        }
    place.mkdir(parents=True, exist_ok=True)
    try:
        draw_story(report, place / "figure.png")
        report["figure"] = str(place / "figure.png")
    except MissingExtraError:
        pass
    write_json(place / "report.json", report)
    return report


def _check_place(place: Path) -> None:
    """A directory with another report, or a store, is somebody else's."""
    path = place / "report.json"
    if path.exists():
        try:
            ours = json.loads(path.read_text(encoding="utf-8"))["story"] in STORIES
        except (ValueError, KeyError, TypeError):
            ours = False
        if not ours:
            raise SonaValueError(f"{path} is not the report of a story: choose another directory with --out")


# ---- the stories ----


def _plain(world: World, rounds: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    rows = world.rows(0, rounds)
    return world.x[rows], world.y[rows].copy(), np.zeros(rounds, np.bool_)


def _drift(world: World, rounds: int) -> Script:
    """Half way every digit gets the answer of another one."""
    x, right, never = _plain(world, rounds)
    order = np.random.default_rng((world.seed, 2)).permutation(len(world.arms))
    other = np.empty_like(order)
    other[order] = np.roll(order, 1)
    right[rounds // 2 :] = other[right[rounds // 2 :]]
    phases = [(0, "before"), (rounds // 2, "every digit has another answer")]
    return Script(x, right, never, never, phases, [(world.held_x, other[world.held_y])])


def _tasks(world: World, rounds: int) -> Script:
    """Two digits at a time, ten arms open."""
    rng = np.random.default_rng((world.seed, 3))
    pairs = rng.permutation(len(world.arms)).reshape(TASKS, -1)
    starts = [rounds * n // TASKS for n in range(TASKS + 1)]
    shown = [
        rng.choice(np.flatnonzero(np.isin(world.y, pair)), end - start)
        for pair, start, end in zip(pairs, starts[:-1], starts[1:], strict=True)
    ]
    rows = np.concatenate(shown)
    never = np.zeros(rounds, np.bool_)
    names = [f"digits {' and '.join(map(str, sorted(pair.tolist())))}" for pair in pairs]
    held = [(world.held_x[which], world.held_y[which]) for which in (np.isin(world.held_y, pair) for pair in pairs)]
    return Script(world.x[rows], world.y[rows], never, never, list(zip(starts[:-1], names, strict=True)), held, names)


def _poison(world: World, rounds: int) -> Script:
    """One reward in five is wrong all the time; then all of them for a while; later those of one source."""
    x, right, never = _plain(world, rounds)
    rng = np.random.default_rng((world.seed, 4))
    lies, hostile = rng.random(rounds) < FLIPPED, never.copy()
    block = slice(rounds * 3 // 8, rounds * 4 // 8)
    lies[block] = True
    late = slice(rounds * 5 // 8, rounds * 7 // 8)
    hostile[late] = rng.random(late.stop - late.start) < 1 / 3
    lies |= hostile
    phases = [
        (0, f"{FLIPPED:.0%} of rewards flipped"),
        (block.start, "all rewards inverted"),
        (block.stop, "as before"),
        (late.start, f"a third from {HOSTILE}, inverted"),
        (late.stop, "as before"),
    ]
    return Script(x, right, lies, hostile, phases, [(world.held_x, world.held_y)])


_SCRIPTS: dict[StoryName, Callable[[World, int], Script]] = {"drift": _drift, "tasks": _tasks, "poison": _poison}


# ---- playing ----


def _play(
    script: Script, policies: list[Policy], router: Router, did: list[dict[str, Any]], story: StoryName, bar: Progress | None
) -> tuple[dict[str, npt.NDArray[np.bool_]], dict[str, list[float]]]:
    """
    Whether each policy answered each round right, (T,) by name; and of tasks, at the end of each, accuracy on the held-out digits of those
    until then. Notes in `did` what sona did and when.
    """
    rounds = len(script.x)
    kept: dict[str, list[float]] = {"round": [], **{policy.name: [] for policy in policies}}

    def look_back(at: int) -> None:
        _cycle(router, did, at)
        kept["round"].append(at)
        for policy in policies:
            kept[policy.name].append(_held_out(policy, script.held[: len(kept["round"])]))

    right = {policy.name: np.zeros(rounds, np.bool_) for policy in policies}
    tasks = dict(script.phases) if script.names else {}
    alarms, done = 0, 0
    try:
        for t, (x, answer) in enumerate(zip(script.x, script.right.tolist(), strict=True)):
            if t in tasks:
                if t:
                    look_back(t)
                router.engine.loop_b.start_task(tasks[t])
            source = HOSTILE if script.hostile[t] else f"user {t % 12}"
            for policy in policies:
                decision = policy.route(x)
                right[policy.name][t] = good = policy.arm(decision) == answer
                reward = float(good != script.lies[t])
                if isinstance(policy, Adapted) and story == "poison":
                    policy.router.feedback(decision.id, reward, source=source)
                else:
                    policy.feedback(decision, reward)
            done = t + 1
            if tasks and done % CYCLE_EVERY == 0 and done not in tasks and done < rounds:
                _cycle(router, did, done)
            if (done % ASK_EVERY == 0 or done == rounds) and (now := router.stats()["drift"]["alarms"]) > alarms:
                alarms = now
                did.append({"round": done, "what": "drift alarm", "detail": "the correction is doubted, replay starts at the change"})
            if bar is not None and bar.due(done):
                recent = slice(max(done - 250, 0), done)
                bar.update(done, "last 250: " + "  ".join(f"{name} {hits[recent].mean():.2f}" for name, hits in right.items()))
        if tasks:
            look_back(rounds)
    except KeyboardInterrupt:
        raise Interrupted(done) from None
    return right, kept


def _cycle(router: Router, did: list[dict[str, Any]], at: int) -> None:
    """One background cycle over the newest rows and the reservoirs."""
    result = router.background_learn()
    detail = result.verdict or result.status
    if result.version is not None:
        detail += f", {result.version.window['replayed']} rows replayed"
    did.append({"round": at, "what": "background cycle", "detail": detail})


# ---- summing up ----


def _summary(script: Script, right: npt.NDArray[np.bool_], policy: Policy) -> dict[str, Any]:
    ends = [start for start, _ in script.phases[1:]] + [len(right)]
    return {
        "phases": [float(right[start:end].mean()) for (start, _), end in zip(script.phases, ends, strict=True)],
        "last": float(right[-min(500, len(right)) :].mean()),
        "wrong": int((~right).sum()),
        "held_out": _held_out(policy, script.held),
    }


def _held_out(policy: Policy, held: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]) -> float:
    return float(np.mean([np.mean(policy.predict(x) == y) for x, y in held]))


def _curve(right: Mapping[str, npt.NDArray[np.bool_]]) -> dict[str, list[int]]:
    """Wrong answers so far, every 25 rounds."""
    rounds = len(next(iter(right.values())))
    at = np.unique(np.append(np.arange(CURVE_STEP, rounds + 1, CURVE_STEP), rounds))
    return {"round": at.tolist()} | {name: np.cumsum(~hits)[at - 1].tolist() for name, hits in right.items()}
