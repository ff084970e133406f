"""``sona demo``: one run on a world of digits, against its peers, with everything that a second run needs to go on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from sona.demo.linucb import LinUCB
from sona.demo.world import World, WorldName, make_world
from sona.errors import MissingExtraError, SonaError, SonaValueError
from sona.progress import Progress
from sona.report import write_json
from sona.report.plots import Curve, draw
from sona.router import Router
from sona.simulate import Adapted, Frozen, Interrupted, Policy, Trace, curves, machine, play, summarise

REPORT_FORMAT = 1
MAX_ROUNDS = 1_000_000
# Best of alpha 0, .1, .3 and ridge .1, .3, 1 over the four worlds (geometric mean of regret, seeds 0-4, 3000 rounds).
LINUCB_ALPHA, LINUCB_RIDGE = 0.1, 0.3


def run_demo(
    *,
    world: WorldName = "shift",
    seed: int = 0,
    rounds: int = 3000,
    out: str | os.PathLike[str] = "sona-demo",
    progress: Callable[[int], Progress] | None = None,
) -> dict[str, Any]:
    """Stream ``rounds`` digits through a Router with a store, beside the frozen model and LinUCB, and write what happened into ``out``.

    A second call with the same world and seed goes on where the store ended.

    Returns
    -------
    dict
        What ``out/report.json`` holds: the runs so far, the last one at the end.

    Raises
    ------
    SonaValueError
        Unusable options, or ``out`` belongs to another world or seed.
    sona.simulate.Interrupted
        Ctrl-C; the report and the store hold the rounds that were completed.
    """
    if not 1 <= rounds <= MAX_ROUNDS:
        raise SonaValueError(f"expected rounds in 1..{MAX_ROUNDS}, got {rounds}")
    if seed < 0:
        raise SonaValueError(f"expected seed >= 0, got {seed}")
    place = Path(out)
    digits = make_world(world, seed)
    report = _open_report(place, world, seed)
    if report["rounds_done"] and not (place / "sona.db").exists():
        raise SonaValueError(f"{place} has a report of {report['rounds_done']} rounds and no sona.db: choose another directory with --out")
    names = [str(arm) for arm in range(len(digits.arms))]
    with Router(
        dict(zip(names, digits.arms, strict=True)),
        store=place / "sona.db",
        seed=seed,
        name="demo",
        model_fingerprint=f"digits {world} {seed}",
    ) as router:
        assert router.engine.store is not None
        start = max(report["rounds_done"], router.engine.store.count())  # a run that was killed is in the store alone
        linucb = LinUCB(digits.arms, alpha=LINUCB_ALPHA, ridge=LINUCB_RIDGE)
        if start:  # it has no store: its earlier rounds are played again
            play([linucb], digits.x, digits.y, digits.rows(0, start))
        policies: list[Policy] = [Frozen(digits.arms), Adapted(router), linucb]
        traces: dict[str, Trace] = {}
        stop = None
        try:
            with nullcontext() if progress is None else progress(rounds) as bar:
                on_round = None if bar is None else _watch(bar)
                play(policies, digits.x, digits.y, digits.rows(start, rounds), on_round=on_round, traces=traces)
        except Interrupted as interrupted:
            stop = interrupted
            traces = {name: trace.cut(stop.rounds) for name, trace in traces.items()}
        router.flush()
        if stop is None or stop.rounds:
            report["runs"].append(_run_entry(report, start, policies, traces, digits))
        report["rounds_done"] = max(start + len(traces["sona"].reward), router.engine.store.count())
    if report["runs"]:
        report["figure"] = _figure(report, place, digits)
    write_json(place / "report.json", report)
    if stop is not None:
        raise stop
    return report


def _open_report(place: Path, world: str, seed: int) -> dict[str, Any]:
    """The report of earlier runs in ``place``, or a new one, written at once so that the store beside it is never without."""
    path = place / "report.json"
    if not path.exists():
        if (place / "sona.db").exists():
            raise SonaValueError(f"{place / 'sona.db'} has no report.json beside it: choose another directory with --out")
        place.mkdir(parents=True, exist_ok=True)
        report: dict[str, Any] = {
            "format": REPORT_FORMAT,
            "world": world,
            "seed": seed,
            "linucb": {"alpha": LINUCB_ALPHA, "ridge": LINUCB_RIDGE},
            "rounds_done": 0,
            "runs": [],
            "figure": None,
        }
        write_json(path, report)
        return report
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        found = (report["format"], report["world"], report["seed"], int(report["rounds_done"]), [run["curve"] for run in report["runs"]])
    except (ValueError, KeyError, TypeError) as error:
        raise SonaError(f"{path} is not a report of sona demo ({type(error).__name__}): choose another directory with --out") from None
    if found[0] != REPORT_FORMAT:
        raise SonaError(f"{path} has format {found[0]}, this version reads {REPORT_FORMAT}: choose another directory with --out")
    if found[1:3] != (world, seed):
        raise SonaValueError(
            f"{place} holds world {found[1]}, seed {found[2]}; expected world {world}, seed {seed}: choose another directory with --out"
        )
    return report


def _watch(bar: Progress) -> Callable[[int, Mapping[str, Trace]], None]:
    def on_round(done: int, traces: Mapping[str, Trace]) -> None:
        if bar.due(done):
            recent = slice(max(done - 250, 0), done)
            bar.update(done, "last 250: " + "  ".join(f"{name} {np.mean(trace.reward[recent]):.2f}" for name, trace in traces.items()))

    return on_round


def _run_entry(report: Mapping[str, Any], start: int, policies: list[Policy], traces: dict[str, Trace], digits: World) -> dict[str, Any]:
    summaries = {policy.name: summarise(policy, traces[policy.name], digits.held_x, digits.held_y) for policy in policies}
    unfinished = start - report["rounds_done"]
    resumed = None
    if report["runs"] and not unfinished:
        previous = report["runs"][-1]
        resumed = {
            "first": summaries["sona"].first,
            "previous_last": previous["policies"]["sona"]["last"],
            "previous_rounds": previous["rounds"],
        }
    return {
        "start": start,
        "rounds": len(traces["sona"].reward),
        "unfinished": unfinished,
        "resumed": resumed,
        "machine": machine(),
        "policies": {name: line.as_json() for name, line in summaries.items()},
        "curve": curves(traces, start),
    }


def _figure(report: dict[str, Any], place: Path, digits: World) -> str | None:
    """The figure's path, or None where matplotlib is not installed: the table is worth having without it."""
    last_gap = max((place for place, run in enumerate(report["runs"]) if run["unfinished"]), default=0)
    runs = [
        Curve(run["start"], run["curve"]["round"], {n: r for n, r in run["curve"].items() if n != "round"})
        for run in report["runs"][last_gap:]
    ]
    path = place / "figure.png"
    try:
        draw(runs, path, title=f"Handwritten digits, world {digits.name}, seed {digits.seed}: only the shown arm's reward comes back")
    except MissingExtraError:
        return None
    return str(path)
