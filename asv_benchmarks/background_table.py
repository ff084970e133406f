"""What does a background cycle cost, and what does its candidate bring?  Prints times, and regret with and without cycles.

    python asv_benchmarks/background_table.py [--seeds 5] [--streams NAME ...] [--json FILE] [--figure FILE]

--figure draws the cost of a trajectory in a cycle's patterns over the first 100,000.

Regret is in expected reward, of routers that run a cycle each 500 requests: as they are, with a live trial of each candidate; and serving
every candidate that the screen does not reject, which `background_learn` by itself does not. Seeds 0 to 4 are for tuning.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median, stdev
from time import process_time
from typing import Literal

import numpy as np
from row import print_lines
from streams import Stream, make

from sona import Router
from sona.demo.world import make_world
from sona.loops.background import BackgroundLoopConfig
from sona.loops.patterns import RequestPatterns
from sona.loops.replay import Mark, Replay, Rows
from sona.patterns import PatternConfig, ReasoningBank

EVERY = 500  # requests between cycles
ROUNDS = 5
LONG = 100_000  # trajectories
STREAMS = (
    "digits:few:c",
    "digits:shift:c",
    "digits:few:f20",
    "digits:few:r5",
    "digits:shift:r5",
    "digits:few:c:T=10000",
    "digits:few:f20:T=10000",
    "digits:few:r5:T=10000",
)
Cycles = Literal["none", "trials", "what passes"]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    setting: str
    figure: str
    target: str = ""
    met: bool | None = None


def learned(count: int, dim: int, arms: int = 20, clusters: int = 50, window: int = 4000) -> Router:
    """A router that has seen `count` requests from 50 clusters; the right arm of each cluster is random."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((clusters, dim))
    right = rng.integers(arms, size=clusters)
    config = BackgroundLoopConfig(patterns=PatternConfig(embedding_dim=dim, k_clusters=clusters), replay_rows=window, trial=False)
    router = Router(rng.standard_normal((arms, dim)).astype(np.float32), background=config, precondition="identity")
    for k in rng.integers(clusters, size=count):
        decision = router.route((centres[k] + 0.5 * rng.standard_normal(dim)).astype(np.float32))
        router.feedback(decision.id, float(decision.index == right[k]))
    return router


def milliseconds(call: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
    """Median CPU time, because waiting for a core is not the code's doing; `before` is not timed."""
    took = []
    for _ in range(ROUNDS):
        before()
        start = process_time()
        call()
        took.append(1e3 * (process_time() - start))
    return median(took)


def times() -> list[Row]:
    found = []
    for dim in (256, 384):
        for count in (1000, 4000):
            policy = learned(count, dim).engine.policy
            assert policy is not None
            rows, replay = Rows.remembered(policy, count), Replay(policy)
            took = milliseconds(lambda replay=replay, rows=rows: replay.run(rows, passes=2))
            goal = ("< 1000 ms", took < 1000) if (count, dim) == (4000, 384) else ("", None)
            found.append(Row("replay, 2 passes", f"{count} rows, d={dim}, K=20", f"{took:.1f} ms", *goal))
    router = learned(1000, 256)
    loop, policy = router.engine.loop_b, router.engine.policy
    assert loop.window is not None
    assert policy is not None
    router.background_learn()  # loads scikit-learn
    bank = loop.patterns.bank

    def again() -> None:
        loop._cycles = loop._counted = 0  # the same rows count as new ones
        loop.patterns = RequestPatterns(bank.config, policy, None)

    took = milliseconds(router.background_learn, again)
    found.append(Row("background cycle", "1000 trajectories, d=256, k=50", f"{took:.1f} ms", "<= 100 ms", took <= 100))
    found.append(Row("pattern extraction alone, later cycle", "the same", f"{milliseconds(loop.patterns.bank.extract_patterns):.1f} ms"))
    mark = 10 * milliseconds(lambda: [Mark.of(policy) for _ in range(100)])  # us
    share = f"{mark:.0f} us, {mark / 64:.2f} us a reward"
    found.append(Row("mark of the learner", "d=256, K=20, each 64 to 256 rewards", share, "< 1 us", mark < 64))
    return found


def patterns(figure: Path | None = None) -> list[Row]:
    """Patterns of a router that serves for long, of the demo's stream, and of scikit-learn."""
    import sklearn.cluster  # noqa: F401 (loaded by the first cycle otherwise)

    found, per = [], {}
    router = learned(0, 256, window=1000)
    loop, rng = router.engine.loop_b, np.random.default_rng(1)
    centres = rng.standard_normal((50, 256)).astype(np.float32)
    assert loop.window is not None
    for count in range(1000, LONG + 1, 1000):
        for k in rng.integers(50, size=1000):
            decision = router.route(centres[k] + 0.5 * rng.standard_normal(256).astype(np.float32))
            router.feedback(decision.id, float(decision.index == k % 20))
        start = process_time()
        loop.patterns.take(loop.patterns.learn(loop.window.newest()))
        per[count] = process_time() - start  # s a thousand, ms each
    early, late = median(list(per.values())[:10]), median(list(per.values())[-10:])
    setting = f"cycle each 1000, d=256, first 10 and last 10 of {LONG // 1000}"
    shown = f"{1000 * early:.0f} and {1000 * late:.0f} us"
    found.append(Row("patterns, cost a trajectory", setting, shown, "within 1.2x", late <= 1.2 * early))
    if figure is not None:
        draw_cost(per, figure)

    for seed in range(3):
        world = make_world("shift", seed)
        router = Router(world.arms, seed=seed)
        for row in world.rows(0, 3000):
            decision = router.route(world.x[row])
            router.feedback(decision.id, float(decision.index == world.y[row]))
        router.background_learn()
        quality = mean(match.quality for match in router.engine.find_patterns(world.x[0], 1000))
        found.append(
            Row("mean quality of patterns", f"demo stream shift, 3000 rounds, seed {seed}", f"{quality:.2f}", "> 0.7", quality > 0.7)
        )
    ratio = median(inertia(seed) for seed in range(10))
    found.append(Row("inertia over scikit-learn's", "600 rows, d=32, k=30, median of 10", f"{ratio:.3f}", "<= 1.01", ratio <= 1.01))
    return found


def draw_cost(per: dict[int, float], path: Path) -> None:
    """Microseconds a trajectory, cycle by cycle."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(list(per), [1000 * seconds for seconds in per.values()], ".", markersize=3)
    axes.set(
        xlabel="trajectories so far", ylabel="us a trajectory", ylim=(0, None), title="Patterns: a cycle each 1000 trajectories, d=256"
    )
    figure.savefig(path, dpi=150)


def inertia(seed: int) -> float:
    """Of a bank's clusters, over the median of five runs of KMeans on the same weighted unit vectors."""
    from sklearn.cluster import KMeans

    rng = np.random.default_rng(seed)
    x = np.repeat(rng.standard_normal((60, 32)), 10, axis=0) + 0.5 * rng.standard_normal((600, 32))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    quality = rng.uniform(size=600)
    bank = ReasoningBank(PatternConfig(embedding_dim=32, k_clusters=30, min_cluster_size=1, merge_similarity=1.0, seed=seed))
    bank.replace(x, quality)
    centroids = np.stack([pattern.centroid for pattern in bank.extract_patterns()])
    own = quality @ ((x[:, None] - centroids) ** 2).sum(axis=2).min(axis=1)
    peers = [KMeans(30, n_init=1, random_state=state).fit(x, sample_weight=quality).inertia_ for state in range(5)]
    return float(own / median(peers))


def recomputed(count: int = 4000, dim: int = 384, arms: int = 20) -> list[Row]:
    """Scores and directions are computed again from the rows: what that saves, and what it costs."""
    policy = learned(count, dim, arms).engine.policy
    assert policy is not None
    rows, replay = Rows.remembered(policy, count), Replay(policy)
    stored = rows.nbytes / len(rows)
    kept = stored + 4 * (dim + arms)  # v and pi as well
    took = 1e3 * milliseconds(lambda: replay.run(rows)) / len(rows)
    scores = 1e3 * milliseconds(lambda: replay.score(rows)) / len(rows)
    setting = f"d={dim}, K={arms}"
    return [
        Row("bytes of a remembered row", setting, f"{stored:.0f}, with v and pi stored {kept:.0f}"),
        Row("replay of a row", setting, f"{took:.1f} us, of which the scores take {scores:.1f} us"),
    ]


def sharded(seeds: int) -> list[Row]:
    """Accuracy on held-out digits after 2000 decisions were replayed in shards, each from the same mark, and reduced."""
    found = []
    for name in ("few", "shift", "rand"):
        accuracy: dict[int, list[float]] = {}
        for seed in range(seeds):
            world = make_world(name, seed)  # type: ignore[arg-type]
            router = Router(world.arms, seed=seed)
            policy = router.engine.policy
            assert policy is not None
            for n, row in enumerate(world.rows(0, 2300)):
                if n == 300:
                    mark = Mark.of(policy)
                decision = router.route(world.x[row])
                router.feedback(decision.id, float(decision.index == world.y[row]))
            replay, rows = Replay(policy, mark), Rows.remembered(policy, 2000)
            held = Rows.of(world.held_x, world.held_y, np.zeros(len(world.held_y)))
            accuracy.setdefault(0, []).append(float((replay.score(held)[1] == world.held_y).mean()))
            for shards in (1, 2, 4, 8):
                kept = replay.run(rows, passes=2, seed=seed, shards=shards)
                accuracy.setdefault(shards, []).append(float((replay.score(held, kept)[1] == world.held_y).mean()))
        share = ", ".join(f"{shards or 'mark'}: {mean(values):.3f}" for shards, values in accuracy.items())
        found.append(Row("held-out accuracy by number of shards", f"digits:{name}, 2000 rows", share))
    return found


def regret(stream: Stream, cycles: Cycles) -> tuple[float, int, int]:
    """(regret, candidates, candidates served)"""
    router = Router(stream.arms, seed=stream.seed, background=BackgroundLoopConfig(trial=cycles == "trials"))
    lost, made = 0.0, 0
    for t, x in enumerate(stream.x):
        decision = router.route(x)
        lost += float(stream.value[t].max() - stream.value[t, decision.index])
        router.feedback(decision.id, stream.reward(t, decision.index))
        if cycles == "none" or t % EVERY != EVERY - 1:
            continue
        result = router.background_learn()
        made += result.version is not None
        if cycles == "what passes" and result.verdict == "undecided" and result.version is not None:
            router.engine.publish(result.version)
    taken = sum("took its place" in version.reason for version in router.engine.versions())
    return lost, made, taken


def regrets(names: list[str], seeds: int) -> list[Row]:
    found = []
    for name in names:
        alone = [regret(make(name, seed), "none")[0] for seed in range(seeds)]
        found.append(Row("regret without cycles", name, spread(alone)))
        modes: tuple[Cycles, ...] = ("trials", "what passes")
        for mode in modes:
            runs = [regret(make(name, seed), mode) for seed in range(seeds)]
            change = mean(run[0] for run in runs) / mean(alone) - 1
            share = f"{sum(run[2] for run in runs)} of {sum(run[1] for run in runs)} served"
            found.append(Row(f"regret, {mode}", name, f"{spread([run[0] for run in runs])}, {100 * change:+.0f} %, {share}"))
        print(f"{name}: done", file=sys.stderr, flush=True)
    return found


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{mean(values):.0f}" + (f"+-{stdev(values):.0f}" if len(values) > 1 else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--streams", nargs="*", default=list(STREAMS), metavar="NAME")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the cost of a trajectory")
    options = parser.parse_args()
    rows = times() + patterns(options.figure) + recomputed() + sharded(options.seeds) + regrets(options.streams, options.seeds)
    lines = [("what", "setting", "figure", "target", "met")]
    lines += [(r.what, r.setting, r.figure, r.target, {True: "yes", False: "NO", None: ""}[r.met]) for r in rows]
    print_lines(lines)
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
