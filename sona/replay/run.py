"""``sona replay``: the user's own data through a Router, with the frozen model beside it, and a report of both."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sona.errors import MissingExtraError, SonaValueError
from sona.progress import Progress
from sona.replay.lines import BadLines
from sona.replay.log import Arms, LoggedDecisions, LoggedRow, read_arms
from sona.replay.offpolicy import estimates, run_log
from sona.replay.tables import Labelled, read_csv, read_npz
from sona.report import write_json
from sona.report.plots import Curve, draw
from sona.router import LoggedDecision, Router
from sona.simulate import Adapted, Frozen, Policy, curves, machine, play, summarise

REPORT_FORMAT = 1
CLIP = 6.0  # standard deviations, as in the demo


@dataclass(frozen=True, kw_only=True)
class ReplayOptions:
    """What ``sona replay`` is asked for.

    Attributes
    ----------
    labelled : int
        Rows per class that become its arm's vector and leave the stream (.npz, .csv).
    prior : bool
        False: arm vectors are random and orthonormal, as for a user who has only names.
    held_out : float
        Share of the rows, drawn at random, that is never streamed.
    standardise : bool
        Bring every feature to mean 0 and deviation 1, and clip it to six deviations, before use.
    shuffle : bool
        Stream the rows in random order instead of the file's (.npz, .csv).
    label : str
        Name of the label column (.csv).
    arms : path, optional
        JSON file of arm vectors (.jsonl).
    uniform : bool
        The log drew its arms uniformly at random: the propensity is 1 / number of candidates (.jsonl).
    reward_range : (float, float)
        Declared range of the rewards (.jsonl); ``clip`` brings others into it.
    """

    labelled: int = 5
    prior: bool = True
    held_out: float = 0.2
    standardise: bool = False
    shuffle: bool = False
    label: str = "y"
    arms: str | os.PathLike[str] | None = None
    uniform: bool = False
    reward_range: tuple[float, float] = (0.0, 1.0)
    clip: bool = False
    skip_bad: bool = False
    seed: int = 0
    store: str | os.PathLike[str] | None = None
    out: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.labelled < 1:
            raise SonaValueError(f"expected labelled >= 1, got {self.labelled}")
        if not 0 <= self.held_out < 1:
            raise SonaValueError(f"expected a held-out share in [0, 1), got {self.held_out}")
        if self.seed < 0:
            raise SonaValueError(f"expected seed >= 0, got {self.seed}")
        if not (np.isfinite(self.reward_range).all() and self.reward_range[0] < self.reward_range[1]):
            raise SonaValueError(f"expected a reward range with low < high, got {self.reward_range}")


def run_replay(path: str | os.PathLike[str], options: ReplayOptions, progress: Callable[[int], Progress] | None = None) -> dict[str, Any]:
    """Replay a file; its ending says how it is read. Returns the report, and writes it into ``options.out`` when that is given.

    Raises
    ------
    SonaValueError
        The file cannot be used; the message names the line and what is wrong there.
    """
    kind = Path(path).suffix.lower()
    if kind == ".jsonl":
        report = _replay_log(path, options, progress)
    elif kind in (".npz", ".csv"):
        bad = BadLines(path, skip=options.skip_bad)
        data = read_npz(path, bad) if kind == ".npz" else read_csv(path, bad, label=options.label)
        report = _replay_labelled(path, data, bad, options, progress)
    else:
        raise SonaValueError(f"expected a file that ends in .npz, .csv or .jsonl, got {os.fspath(path)!r}")
    if options.out is not None:
        place = Path(options.out)
        place.mkdir(parents=True, exist_ok=True)
        if "curve" in report:
            report["figure"] = _figure(report, place / "figure.png")
        write_json(place / "report.json", report)
    return report


def _replay_labelled(
    path: str | os.PathLike[str], data: Labelled, bad: BadLines, options: ReplayOptions, progress: Callable[[int], Progress] | None
) -> dict[str, Any]:
    rng = np.random.default_rng(options.seed)
    x = _standardised(data.x) if options.standardise else data.x
    shown = _labelled_rows(data.y, len(data.names), options.labelled) if options.prior else np.zeros(0, np.int64)
    rest = np.setdiff1d(np.arange(len(x)), shown)
    held = np.sort(rng.permutation(rest)[: int(options.held_out * len(rest))])
    stream = np.setdiff1d(rest, held)
    if not len(stream):
        raise SonaValueError(f"expected rows beyond the {options.labelled} labelled ones per class and the held-out share, got none")
    arms = _centroids(x[shown], data.y[shown], len(data.names)) if options.prior else _orthonormal(len(data.names), x.shape[1], rng)
    if options.shuffle:
        stream = rng.permutation(stream)
    existed = _exists(options.store)
    with Router(dict(zip(data.names, arms, strict=True)), store=options.store, seed=options.seed, name="replay") as router:
        policies: list[Policy] = [Frozen(arms), Adapted(router)]
        with nullcontext() if progress is None else progress(len(stream)) as bar:
            traces = play(policies, x, data.y, stream, on_round=None if bar is None else lambda done, _: bar.update(done))
        summaries = {policy.name: summarise(policy, traces[policy.name], x[held], data.y[held]) for policy in policies}
    return {
        "format": REPORT_FORMAT,
        "kind": "labelled",
        "file": os.fspath(path),
        "rounds": len(stream),
        "features": x.shape[1],
        "arms": len(data.names),
        "prior": f"centroids of {options.labelled} labelled rows per class" if options.prior else "random orthonormal vectors",
        "held_out_rows": len(held),
        "store_held_state": existed,
        "sorted_by_class": _runs_of_one_class(data.y[stream]),
        "skipped": bad.count,
        "skipped_first": bad.messages,
        "ignored": data.ignored,
        "machine": machine(),
        "policies": {name: line.as_json() for name, line in summaries.items()},
        "curve": curves(traces, 0),
    }


def _runs_of_one_class(y: npt.NDArray[np.int64]) -> bool:
    """Whether a row's class mostly follows from the row before, which makes a stream far easier than mixed requests."""
    shares = np.bincount(y) / len(y)
    return bool(np.mean(y[1:] == y[:-1]) > shares @ shares + 0.3) if len(y) > 1 else False


def _standardised(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    spread = x.std(axis=0)
    centred = (x - x.mean(axis=0)) / np.where(spread > 0, spread, 1)
    return np.asarray(np.clip(centred, -CLIP, CLIP), np.float32)


def _labelled_rows(y: npt.NDArray[np.int64], classes: int, count: int) -> npt.NDArray[np.int64]:
    return np.concatenate([np.flatnonzero(y == label)[:count] for label in range(classes)])


def _centroids(x: npt.NDArray[np.float32], y: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.float32]:
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    means = np.stack([unit[y == label].mean(axis=0) for label in range(classes)])
    return np.asarray(means, np.float32)


def _orthonormal(count: int, dim: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """``count`` unit vectors: orthogonal while ``dim`` allows, merely random beyond."""
    rows = rng.standard_normal((count, dim))
    if count <= dim:
        rows = np.linalg.qr(rows.T)[0].T
    return np.ascontiguousarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


class _FrozenLog:
    """The nearest arm by cosine among a row's candidates; learns nothing."""

    def __init__(self, arms: Arms) -> None:
        self._names = tuple(arms)
        self._at = {name: place for place, name in enumerate(arms)}
        vectors = np.stack(list(arms.values()))
        self._arms = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def choose(self, row: LoggedRow) -> str:
        names = self._names if row.candidates is None else row.candidates
        vectors = self._arms if row.candidates is None else self._arms[[self._at[name] for name in names]]
        return names[int(np.argmax(vectors @ row.x))]

    def learn(self, row: LoggedRow) -> None:
        pass


class _AdaptedLog:
    """The Router: asked for its greedy arm, then given the logged outcome as an off-policy step."""

    def __init__(self, router: Router) -> None:
        self._router = router

    def choose(self, row: LoggedRow) -> str:
        row_number = int(self._router.predict(row.x[None], candidates=row.candidates)[0])
        return str(self._router.arms[row_number])

    def learn(self, row: LoggedRow) -> None:
        self._router.warm_start([LoggedDecision(x=row.x, arm=row.arm, reward=row.reward, candidates=row.candidates)])


def _replay_log(path: str | os.PathLike[str], options: ReplayOptions, progress: Callable[[int], Progress] | None) -> dict[str, Any]:
    log = LoggedDecisions(
        path,
        reward_range=options.reward_range,
        clip=options.clip,
        arms=None if options.arms is None else read_arms(options.arms),
        skip_bad=options.skip_bad,
    )
    shape = log.scan()
    arms = shape.vectors
    if arms is None:
        vectors = _orthonormal(len(shape.names), shape.dim, np.random.default_rng(options.seed))
        arms = dict(zip(shape.names, vectors, strict=True))
    existed = _exists(options.store)
    with (
        Router(arms, store=options.store, seed=options.seed, name="replay", reward_range=options.reward_range) as router,
        nullcontext() if progress is None else progress(shape.rows) as bar,
    ):
        run = run_log(
            log.rows(),
            {"frozen": _FrozenLog(arms), "sona": _AdaptedLog(router)},
            uniform_over=len(arms) if options.uniform else None,
            on_row=None if bar is None else bar.update,
        )
    parts = {"all rows": slice(None), "second half": slice(shape.rows // 2, None)}
    return {
        "format": REPORT_FORMAT,
        "kind": "logged",
        "file": os.fspath(path),
        "rows": shape.rows,
        "features": shape.dim,
        "arms": len(arms),
        "prior": "arm vectors of the log" if shape.vectors is not None else "random orthonormal vectors",
        "rows_without_propensity": 0 if options.uniform else shape.without_propensity,
        "store_held_state": existed,
        "rows_earlier_than_before": shape.earlier_than_before,
        "skipped": log.bad.count,
        "skipped_first": log.bad.messages,
        "ignored": dict(shape.ignored),
        "machine": machine(),
        "reward_range": list(options.reward_range),
        "agreement": {part: {name: float(agree[rows].mean()) for name, agree in run.agree.items()} for part, rows in parts.items()},
        "estimates": {part: {name: estimates(run, name, rows, options.reward_range) for name in run.agree} for part, rows in parts.items()},
    }


def _exists(store: str | os.PathLike[str] | None) -> bool:
    return store is not None and Path(store).exists()


def _figure(report: Mapping[str, Any], path: Path) -> str | None:
    regret = {name: values for name, values in report["curve"].items() if name != "round"}
    try:
        draw([Curve(0, report["curve"]["round"], regret)], path, title=f"{Path(report['file']).name}: {report['arms']} arms")
    except MissingExtraError:
        return None
    return str(path)
