"""sona demo, replay and learn."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from sona.cli.arguments import common, progress, seconds, share, whole

if TYPE_CHECKING:
    from sona.cli.arguments import Commands


def add_demo(commands: Commands) -> None:
    demo = commands.add_parser(
        "demo",
        help="learn on handwritten digits, beside the frozen model and LinUCB",
        description="Streams handwritten digits through a Router; only the shown arm's reward comes back. Writes report.json, figure.png "
        "and the store sona.db into --out; run again, it resumes from the store.",
    )
    demo.add_argument(
        "--world",
        choices=("few", "shift", "perm", "rand"),
        help="few: arm vectors from 5 labelled examples each; shift: then half of the embedding is rotated; "
        "perm: half of the arm vectors are swapped; rand: they are random (default: shift)",
    )
    demo.add_argument(
        "--story",
        choices=("drift", "tasks", "poison"),
        help="instead: a world that turns half way, five tasks one after the other, or rewards that lie; beside a learner without guard, "
        "alarm, limits on sources and cycles",
    )
    demo.add_argument("--rounds", type=whole(1, 1_000_000), metavar="N", help="rounds to play (default: 3000; of a story, its own)")
    demo.add_argument("--out", metavar="DIR", help="where results and store go (default: sona-demo, or sona-demo-STORY)")
    common(demo)
    demo.set_defaults(run=_demo)


def add_replay(commands: Commands) -> None:
    replay = commands.add_parser(
        "replay",
        help="the same on your data: labelled rows (.npz, .csv) or logged decisions (.jsonl)",
        description="Labelled rows (X and y) are played as a bandit whose arms are the classes. Logged decisions are learned in their "
        "order, each predicted before it is learned, and valued by replay, IPS and SNIPS estimates with 95 % confidence intervals, which "
        "are refused where they would mislead.",
    )
    replay.add_argument("file", metavar="FILE", help=".npz with X and y; .csv with a header; .jsonl with x, arm, reward, propensity, ...")
    labelled = replay.add_argument_group("labelled rows")
    labelled.add_argument("--label", default="y", metavar="NAME", help="label column of a .csv (default: y)")
    labelled.add_argument(
        "--labelled", type=whole(1, 1_000_000), default=5, metavar="N", help="rows per class that become its arm's vector (default: 5)"
    )
    labelled.add_argument("--no-prior", action="store_true", help="random orthonormal arm vectors instead")
    labelled.add_argument("--held-out", type=share, default=0.2, metavar="SHARE", help="share of rows never streamed (default: 0.2)")
    labelled.add_argument("--standardise", action="store_true", help="bring every feature to mean 0 and deviation 1 first")
    labelled.add_argument("--shuffle", action="store_true", help="stream the rows in random order instead of the file's")
    logged = replay.add_argument_group("logged decisions")
    logged.add_argument("--arms", metavar="FILE", help="JSON file of arm vectors, {name: [numbers], ...}")
    logged.add_argument("--uniform", action="store_true", help="the log drew its arms uniformly at random: propensity = 1 / candidates")
    logged.add_argument("--reward-range", type=float, nargs=2, default=(0.0, 1.0), metavar=("LOW", "HIGH"), help="default: 0 1")
    logged.add_argument("--clip", action="store_true", help="bring rewards outside the range into it")
    replay.add_argument("--skip-bad", action="store_true", help="count malformed lines and go on")
    replay.add_argument("--store", metavar="FILE", help="keep what was learned in this store")
    replay.add_argument("--out", metavar="DIR", help="write report.json, and for labelled rows figure.png, here")
    common(replay)
    replay.set_defaults(run=_replay)


def add_learn(commands: Commands) -> None:
    learn = commands.add_parser(
        "learn",
        help="learn beside a C program: from a ring that both map, into weights that it adopts",
        description="Learns at once from trajectories and rewards that another process puts into a shared ring; publishes the weights "
        "in shared memory, where that process and others adopt them; and keeps everything in a store. A record leaves the ring when it is "
        "durable, so that each counts exactly once, whichever process is killed. Ends on SIGTERM or Ctrl-C, with everything saved; with an "
        "error when another process reads the ring, writes the weights or learns for the store.",
    )
    learn.add_argument("--ring", required=True, metavar="FILE", help="made when absent; best in /dev/shm")
    learn.add_argument("--store", required=True, metavar="STORE", help="a file or a URL, made when absent")
    learn.add_argument("--weights", required=True, metavar="FILE", help="made when absent; best in /dev/shm")
    learn.add_argument("--dim", required=True, type=whole(1, 1 << 20), metavar="N", help="numbers of a request's vector")
    learn.add_argument("--layers", type=whole(1, 4096), default=1, metavar="N", help="adapters (default: 1)")
    learn.add_argument("--fingerprint", metavar="TEXT", help="names the frozen model; states and weights of another one are refused")
    learn.add_argument(
        "--preset",
        choices=("max_throughput", "max_quality", "edge", "batch", "ephemeral", "coordinator"),
        help="of SonaConfig (default: none of them)",
    )
    learn.add_argument("--reward-range", type=float, nargs=2, default=(0.0, 1.0), metavar=("LOW", "HIGH"), help="default: 0 1")
    learn.add_argument("--clip", action="store_true", help="bring rewards outside the range into it")
    learn.add_argument("--name", default="default", metavar="NAME", help="of the state in the store (default: default)")
    learn.add_argument(
        "--capacity",
        type=whole(4096, 1 << 40),
        default=4 << 20,
        metavar="BYTES",
        help="of a ring to be made, a power of two (default: 4 MiB)",
    )
    learn.add_argument("--save", type=seconds, default=1.0, metavar="S", help="seconds between saves, at most (default: 1)")
    learn.add_argument(
        "--poll", type=seconds, default=0.001, metavar="S", help="seconds between looks into an empty ring, at most 1 (default: 0.001)"
    )
    learn.add_argument("--no-cycles", action="store_true", help="leave background and deep cycles out")
    learn.add_argument("--once", action="store_true", help="learn what is there, save it and end")
    learn.add_argument("--json", action="store_true", help="print the counts as JSON")
    learn.set_defaults(run=_learn)


def _demo(arguments: argparse.Namespace) -> int:
    from sona.demo import run_demo
    from sona.demo.text import demo_text
    from sona.report import as_json
    from sona.simulate import Interrupted

    if arguments.story is not None:
        return _story(arguments)
    out = arguments.out or "sona-demo"
    try:
        report = run_demo(
            world=arguments.world or "shift", seed=arguments.seed, rounds=arguments.rounds or 3000, out=out, progress=progress
        )
    except Interrupted as stop:
        print(f"interrupted after {stop.rounds} rounds; run the same command again to resume", file=sys.stderr)
        return 130
    print(as_json(report) if arguments.json else demo_text(report, out))
    return 0


def _story(arguments: argparse.Namespace) -> int:
    from sona.demo import run_story
    from sona.demo.text import story_text
    from sona.errors import SonaValueError
    from sona.report import as_json
    from sona.simulate import Interrupted

    if arguments.world is not None:
        raise SonaValueError(f"--world {arguments.world}: a story has its own world")
    out = arguments.out or f"sona-demo-{arguments.story}"
    try:
        report = run_story(arguments.story, seed=arguments.seed, rounds=arguments.rounds, out=out, progress=progress)
    except Interrupted as stop:
        print(f"interrupted after {stop.rounds} rounds; nothing was written", file=sys.stderr)
        return 130
    print(as_json(report) if arguments.json else story_text(report, out))
    return 0


def _replay(arguments: argparse.Namespace) -> int:
    from sona.replay import ReplayOptions, run_replay
    from sona.replay.text import replay_text
    from sona.report import as_json

    options = ReplayOptions(
        labelled=arguments.labelled,
        prior=not arguments.no_prior,
        held_out=arguments.held_out,
        standardise=arguments.standardise,
        shuffle=arguments.shuffle,
        label=arguments.label,
        arms=arguments.arms,
        uniform=arguments.uniform,
        reward_range=tuple(arguments.reward_range),
        clip=arguments.clip,
        skip_bad=arguments.skip_bad,
        seed=arguments.seed,
        store=arguments.store,
        out=arguments.out,
    )
    report = run_replay(arguments.file, options, progress)
    print(as_json(report) if arguments.json else replay_text(report, arguments.out))
    return 0


def _learn(arguments: argparse.Namespace) -> int:
    from sona.config import SonaConfig
    from sona.report import as_json
    from sona.sidecar import Sidecar, SidecarConfig
    from sona.sidecar.process import whole_process
    from sona.sidecar.text import StatusLine, text

    preset = SonaConfig if arguments.preset is None else getattr(SonaConfig, arguments.preset)
    engine = preset(hidden_dim=arguments.dim, num_layers=arguments.layers, reward_range=tuple(arguments.reward_range), clip=arguments.clip)
    config = SidecarConfig(
        engine=engine,
        name=arguments.name,
        model_fingerprint=arguments.fingerprint,
        capacity=arguments.capacity,
        save_every=arguments.save,
        poll=arguments.poll,
        cycles=not arguments.no_cycles,
    )
    with StatusLine() as status:
        sidecar = Sidecar(arguments.ring, store=arguments.store, weights=arguments.weights, config=config, progress=status.update)
        with whole_process(sidecar):
            report = sidecar.run(once=arguments.once)
    print(as_json(report) if arguments.json else text(report))
    return 0
