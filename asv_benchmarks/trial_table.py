"""Does the gate let the right candidates through?  Candidates on live trial in a Router; what each was worth is known in the end.

    SONA_DATA=DIR python asv_benchmarks/trial_table.py [--seeds 60-61] [--worlds NAME ...] [--json FILE]

Each trial: a router learns a stream for 50, 300 or 1500 requests; a candidate is made of it (the frozen model, shrunk, older, replayed,
trained longer, poisoned, noisy); both go on learning from live traffic, for at most 10,000 requests. Then both are valued over all rows
that this traffic is drawn from, in expected reward. A candidate that is more than one point (of the range of rewards) better by then should
have been accepted, one that is more than .2 points worse should not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import streams
from numpy.typing import NDArray
from row import print_lines

from sona import Router, Version
from sona.adapters import Factors
from sona.loops._policy import Policy
from sona.loops.background import BackgroundLoopConfig
from sona.loops.gate import GateConfig
from sona.loops.replay import Replay, Rows

LIMIT = 10_000
TRAINED = (50, 300, 1500)
LONGER = 3000  # requests more that a candidate "trained longer" has seen
WORLDS = ("digits:few", "digits:shift", "trec6:few")
KINDS = {  # of stream: rewards and what happens during the trial
    "clean 1/0": ("c", ""),
    "clean .95/.5": ("h5", ""),
    "flipped .8/.2": ("f20", ""),
    "noisy .5/.2": ("r5", ""),
    "drifting 1/0": ("c", "drift"),
    "drifting .5/.2": ("r5", "drift"),
    "poisoned 1/0": ("c", "poison"),
    "poisoned .5/.2": ("r5", "poison"),
}


@dataclass(frozen=True)
class Outcome:
    """One trial. gain: of the candidate over the learner, in reward per request of the traffic, when it ended."""

    kind: str
    world: str
    seed: int
    trained: int
    candidate: str
    verdict: str
    requests: int
    gain: float


def candidates(router: Router, older: Factors, longer: Factors, rng: np.random.Generator) -> Iterator[tuple[str, Factors]]:
    policy = router.engine.policy
    assert policy is not None
    now = Factors.of(router.engine.adapters[0])
    rows, again = Rows.remembered(policy, 4000), Replay(policy)
    yield "frozen", Factors(now.down[:0], now.up[:0], now.offset[:0])
    yield "shrunk to a half", Factors(now.down, now.up * np.float32(0.5), now.offset)
    yield "older", older
    yield "replayed", again.run(rows, passes=2, step=0.3)
    yield "replayed at full step", again.run(rows, passes=2, step=1.0)
    yield "trained longer", longer
    for share in (0.1, 0.3, 1.0):
        wrong = rng.random(len(rows)) < share
        flipped = replace(rows, reward=np.where(wrong, 1 - rows.reward, rows.reward).astype(np.float32))
        yield f"poisoned {100 * share:.0f} %", again.run(flipped, passes=2, step=0.3)
    noise = rng.standard_normal(now.up.shape).astype(np.float32) * np.std(now.up)
    yield "noisy", Factors(now.down, now.up + noise, now.offset)


def value(policy: Router | Policy, x: NDArray[np.float32], worth: NDArray[np.float32]) -> float:
    return float(worth[np.arange(len(x)), policy.predict(x)].mean())


def play(router: Router, stream: streams.Stream, start: int, stop: int) -> None:
    for t in range(start, stop):
        decision = router.route(stream.x[t])
        router.feedback(decision.id, stream.reward(t, decision.index))


def trial(stream: streams.Stream, state: dict[str, NDArray[np.generic]], name: str, factors: Factors, kind: str, trained: int) -> Outcome:
    config = BackgroundLoopConfig(trial=False, gate=GateConfig(n_max=LIMIT))
    router = Router(stream.arms, seed=stream.seed, background=config)
    router.engine.restore(state)
    engine = router.engine
    version = engine._service.versions.add(Version(name="default", created=0.0, verdict="undecided", reason="", factors=factors))
    engine.start_trial(version)
    event = KINDS[kind][1]
    rng = np.random.default_rng((stream.seed, trained, 7))
    traffic = slice(TRAINED[-1] + LONGER, None)
    picks = rng.integers(traffic.start, len(stream.x), LIMIT)  # with replacement: nothing drifts but what is meant to
    coin, bad = rng.random(LIMIT), rng.permutation(1000)[:500]
    moved = rng.permutation(len(stream.arms))
    final = stream.value[traffic]
    rival = engine._learners.trial.candidate  # type: ignore[union-attr]
    for n, t in enumerate(picks):
        worth = stream.value[t]
        if event == "drift" and n >= LIMIT // 4:
            worth = worth[moved]
        decision = router.route(stream.x[t])
        reward = float(coin[n] < worth[decision.index])
        router.feedback(decision.id, 1 - reward if event == "poison" and n in bad else reward)
        if engine.trial is None:
            break
    if event == "drift" and n >= LIMIT // 4:
        final = final[:, moved]
    made = [v.verdict for v in engine.versions() if v.window.get("candidate") == version.number]
    verdict = made[-1] if made else "undecided"
    learner = router
    if verdict == "accept":  # what it replaced
        learner = Router(stream.arms)
        learner.engine.restore(engine.state())
        served = next(v for v in reversed(engine.versions()) if v.verdict == "served")
        served.factors.put(learner.engine.adapters[0])
    gain = value(rival, stream.x[traffic], final) - value(learner, stream.x[traffic], final)
    return Outcome(kind, stream.name, stream.seed, trained, name, verdict, n + 1, gain)


def trials(world: str, kind: str, seed: int) -> Iterator[Outcome]:
    rewards = KINDS[kind][0]
    stream = streams.make(f"{world}:{rewards}:T={TRAINED[-1] + LONGER + LIMIT}", seed)
    trained = TRAINED[seed % len(TRAINED)]
    rng = np.random.default_rng((seed, 11))
    router = Router(stream.arms, seed=seed)
    play(router, stream, 0, trained // 2)
    older = Factors.of(router.engine.adapters[0])
    play(router, stream, trained // 2, trained)
    longer = Router(stream.arms, seed=seed)
    longer.engine.restore(router.engine.state())
    play(longer, stream, trained, trained + LONGER)
    state = router.engine.state()
    for name, factors in candidates(router, older, Factors.of(longer.engine.adapters[0]), rng):
        yield trial(stream, state, name, factors, kind, trained)


def summary(found: list[Outcome]) -> list[tuple[str, ...]]:
    groups = defaultdict(list)
    for each in found:
        groups[each.kind].append(each)
    lines = [("stream", "trials", "> +1 point", "accepted", "median requests", "< -.2 points", "accepted", "rejected", "median requests")]
    for kind, some in [*groups.items(), ("all", found)]:
        good, bad = [o for o in some if o.gain > 0.01], [o for o in some if o.gain < -0.002]
        yes, no = [o for o in good if o.verdict == "accept"], [o for o in bad if o.verdict == "reject"]
        wrong = sum(o.verdict == "accept" for o in bad)
        lines.append(
            (
                kind,
                f"{len(some)}",
                f"{len(good)}",
                share(len(yes), len(good)),
                middle(yes),
                f"{len(bad)}",
                share(wrong, len(bad)),
                share(len(no), len(bad)),
                middle(no),
            )
        )
    return lines


def share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"


def middle(some: list[Outcome]) -> str:
    return f"{np.median([o.requests for o in some]):.0f}" if some else "-"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="60-61", metavar="A-B")
    parser.add_argument("--worlds", nargs="*", default=list(WORLDS), metavar="NAME")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), metavar="KIND")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every trial")
    options = parser.parse_args()
    first, _, last = options.seeds.partition("-")
    found: list[Outcome] = []
    for world in options.worlds:
        if not streams.available(f"{world}:c"):
            print(f"{world}: left out, set SONA_DATA to the directory of its embeddings", file=sys.stderr)
            continue
        for kind in options.kinds:
            for seed in range(int(first), int(last or first) + 1):
                found += trials(world, kind, seed)
            print(f"{world}, {kind}: done", file=sys.stderr, flush=True)
    lines = summary(found)
    print_lines(lines)
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in found], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
