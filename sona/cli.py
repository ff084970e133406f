"""The command ``sona``. Exit codes: 0 it worked, 1 an error with one clear line, 2 wrong usage, 130 Ctrl-C."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sona._version import __version__
from sona.errors import SonaError

if TYPE_CHECKING:
    from sona.progress import Progress


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code instead of exiting, except where argparse does."""
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.run
    try:
        code = command(arguments)
        sys.stdout.flush()
        return code
    except SonaError as error:
        return _fail(str(error))
    except BrokenPipeError:  # `sona ... | head`: nobody reads on, and flushing at exit would complain about that
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _fail(message: str) -> int:
    from sona.report.table import one_line

    print(f"sona: error: {one_line(message)}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sona", description="Sits beside a frozen model and learns from each piece of feedback.")
    parser.add_argument("--version", action="version", version=f"sona {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

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
    demo.add_argument("--rounds", type=_whole(1, 1_000_000), metavar="N", help="rounds to play (default: 3000; of a story, its own)")
    demo.add_argument("--out", metavar="DIR", help="where results and store go (default: sona-demo, or sona-demo-STORY)")
    _common(demo)
    demo.set_defaults(run=_demo)

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
        "--labelled", type=_whole(1, 1_000_000), default=5, metavar="N", help="rows per class that become its arm's vector (default: 5)"
    )
    labelled.add_argument("--no-prior", action="store_true", help="random orthonormal arm vectors instead")
    labelled.add_argument("--held-out", type=_share, default=0.2, metavar="SHARE", help="share of rows never streamed (default: 0.2)")
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
    _common(replay)
    replay.set_defaults(run=_replay)

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
    learn.add_argument("--dim", required=True, type=_whole(1, 1 << 20), metavar="N", help="numbers of a request's vector")
    learn.add_argument("--layers", type=_whole(1, 4096), default=1, metavar="N", help="adapters (default: 1)")
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
        type=_whole(4096, 1 << 40),
        default=4 << 20,
        metavar="BYTES",
        help="of a ring to be made, a power of two (default: 4 MiB)",
    )
    learn.add_argument("--save", type=_seconds, default=1.0, metavar="S", help="seconds between saves, at most (default: 1)")
    learn.add_argument(
        "--poll", type=_seconds, default=0.001, metavar="S", help="seconds between looks into an empty ring, at most 1 (default: 0.001)"
    )
    learn.add_argument("--no-cycles", action="store_true", help="leave background and deep cycles out")
    learn.add_argument("--once", action="store_true", help="learn what is there, save it and end")
    learn.add_argument("--json", action="store_true", help="print the counts as JSON")
    learn.set_defaults(run=_learn)

    doctor = commands.add_parser("doctor", help="what sona finds on this machine, and whether a store or a snapshot is sound")
    doctor.add_argument("store", nargs="?", metavar="STORE", help="a store, a file or a URL, or the directory of a snapshot")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(run=_doctor)

    verify = commands.add_parser(
        "verify", help="check every page, checksum and reference of a store, or the files of a snapshot; exit 1 if anything is wrong"
    )
    verify.add_argument("store", metavar="STORE", help="a store, a file or a URL, or the directory of a snapshot")
    verify.add_argument("--json", action="store_true", help="print JSON")
    verify.set_defaults(run=_verify)

    inspect = commands.add_parser(
        "inspect", help="what a store holds: decisions, rewards, arms, learned state, patterns, versions; exit 1 if a part is damaged"
    )
    inspect.add_argument("store", metavar="STORE", help="a file or a URL")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    inspect.set_defaults(run=_inspect)

    versions = commands.add_parser("versions", help="what was served and what was proposed, with the verdicts on it")
    _versioned(versions)
    versions.set_defaults(run=_versions)

    rollback = commands.add_parser(
        "rollback",
        help="serve a version of a store again, from the next start on",
        description="Puts the correction of a kept version into the stored state. What was served until now is kept as a version, so this "
        "can be undone. Refused while a process learns for the store: call engine.rollback() there.",
    )
    _versioned(rollback)
    rollback.add_argument("version", metavar="VERSION", help="number or id, as `sona versions` prints them")
    rollback.set_defaults(run=_rollback)

    dream = commands.add_parser(
        "dream",
        help="one deep cycle over a store: its memory takes in what was learned, dreams and is tidied up",
        description="What the store serves does not change. Refused while a process learns for the store: call engine.deep_learn() there. "
        "A cycle that is killed leaves the memory of before; one that runs out of time keeps what it has.",
    )
    _versioned(dream)
    dream.add_argument("--dreams", type=_whole(0, 10_000), default=50, metavar="N", help="how many dreams (default: 50)")
    dream.add_argument("--duration", type=_seconds, default=600.0, metavar="S", help="seconds that the cycle may take (default: 600)")
    dream.add_argument(
        "--out",
        metavar="DIR",
        help="draw a dream, the cut of its Phi, the patterns, and the memory over its cycles: dream.png, partition.png, patterns.png and "
        "quality.png, as far as there is something to draw; needs matplotlib",
    )
    dream.add_argument("--seed", type=_whole(0, 2**32 - 1), default=0, help="of everything random (default: 0)")
    dream.set_defaults(run=_dream)
    return parser


def _versioned(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", help="a file or a URL")
    parser.add_argument("--namespace", default="default", metavar="NAME", help="of the store (default: default)")
    parser.add_argument("--name", default="default", metavar="NAME", help="of the engine or router (default: default)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=_whole(0, 2**32 - 1), default=0, help="of everything random (default: 0)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def _whole(low: int, high: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected a whole number in {low}..{high}, got {text!r}")
        return value

    return whole


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds, a number of at least 0, got {text!r}")
    return value


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a share in [0, 1), got {text!r}")
    return value


def _progress(total: int) -> Progress:
    from sona.progress import Progress

    return Progress(total)


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
            world=arguments.world or "shift", seed=arguments.seed, rounds=arguments.rounds or 3000, out=out, progress=_progress
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
        report = run_story(arguments.story, seed=arguments.seed, rounds=arguments.rounds, out=out, progress=_progress)
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
    report = run_replay(arguments.file, options, _progress)
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


def _doctor(arguments: argparse.Namespace) -> int:
    from sona.health import OPTIONAL, faults, machine_report
    from sona.report import as_json

    report = machine_report()
    unsound = False
    if arguments.store is not None:
        kind, found = _health(arguments.store)
        report[kind] = found
        unsound = bool(faults(found))
    if arguments.json:
        print(as_json(report))
        return int(unsound)
    packages = [f"{name} {version}" for name, version in report["packages"].items() if version is not None]
    print(f"sona       {report['sona']}, Python {report['python']}, SQLite {report['sqlite']}")
    print(f"machine    {report['cpu']}, {report['cores']} cores, {report['system']}")
    print(f"isas       {', '.join(report['isas'])}")
    print(f"packages   {', '.join(packages)}")
    for name, extra in OPTIONAL.items():
        if report["packages"][name] is None:
            print(f"missing    {name}: pip install 'sona[{extra}]'")
    for name, value in report["environment"].items():
        print(f"setting    {name}={value!r}")
    if arguments.store is not None:
        _print_health(kind, found)
    return int(unsound)


def _verify(arguments: argparse.Namespace) -> int:
    from sona.health import faults
    from sona.report import as_json

    kind, found = _health(arguments.store)
    if arguments.json:
        print(as_json(found))
    else:
        _print_health(kind, found)
    return int(bool(faults(found)))


def _health(where: str) -> tuple[str, dict[str, Any]]:
    """What is there, a snapshot or a store, and its report."""
    from sona.health import snapshot_report, store_report

    return ("snapshot", snapshot_report(where)) if os.path.isdir(where) else ("store", store_report(where))


def _print_health(kind: str, report: Mapping[str, Any]) -> None:
    if kind == "snapshot":
        _print_snapshot(report)
    else:
        _print_store(report)


def _inspect(arguments: argparse.Namespace) -> int:
    from sona.contents import contents
    from sona.report import as_json
    from sona.report.table import one_line, size

    report = contents(arguments.store)
    if arguments.json:
        print(as_json(report))
        return 0
    print(f"store      {one_line(report['path'])}, {size(report['file_bytes'])}")
    for name, found in report["namespaces"].items():
        print(f"  {name}: {found['decisions']} decisions, {found['rewards']} rewards, {found['arms']} arms, {size(found['bytes'])}")
        if found["sources"]:
            busiest = sorted(found["sources"].items(), key=lambda each: (-each[1], each[0]))
            shown = ", ".join(f"{one_line(source)} {count}" for source, count in busiest[:5])
            print(f"    rewards from {len(busiest)} source{'s' * (len(busiest) != 1)}: {shown}{', ...' * (len(busiest) > 5)}")
        for state, about in found["states"].items():
            served = f", serves {about['published']}" if about["published"] is not None else ""
            served += f", version {about['trial']} on trial" if about["trial"] is not None else ""
            count = f"{about['versions']} version{'s' * (about['versions'] != 1)}"
            patterns = f"{about['patterns']} pattern{'s' * (about['patterns'] != 1)}"
            patterns += f", memory of {about['memory']} nodes" if about["memory"] else ""
            print(f"    {state}: {size(about['bytes'])}, rank {about['rank']}, {patterns}, {count}{served}")
        for fault in found["faults"]:
            print(f"    {one_line(fault)}")
    return int(any(found["faults"] for found in report["namespaces"].values()))


def _versions(arguments: argparse.Namespace) -> int:
    from sona.contents import versions_of
    from sona.report import as_json
    from sona.report.table import one_line

    found = versions_of(arguments.store, arguments.namespace, arguments.name)
    if arguments.json:
        print(as_json({"versions": [version.as_dict() for version in found]}))
        return 0
    if not found:
        print("no versions")
    for version in found:
        print(f"{'*' if version.published else ' '} {version.id}  {version.verdict}  {one_line(version.reason)}")
    return 0


def _rollback(arguments: argparse.Namespace) -> int:
    from sona.contents import roll_back
    from sona.report import as_json

    version = roll_back(arguments.store, arguments.version, arguments.namespace, arguments.name)
    print(as_json(version.as_dict()) if arguments.json else f"{version.id} is served from the next start on")
    return 0


def _dream(arguments: argparse.Namespace) -> int:
    from sona.contents import dream
    from sona.loops.deep import STAGES, DeepLoopConfig
    from sona.progress import Progress
    from sona.report import as_json
    from sona.report.dreams import deep_report, deep_text, draw_deep
    from sona.report.plots.canvas import require_matplotlib

    if arguments.out is not None:  # what would go wrong afterwards goes wrong before the cycle
        require_matplotlib()
        Path(arguments.out).mkdir(parents=True, exist_ok=True)
    config = DeepLoopConfig(dreams_per_cycle=arguments.dreams, seed=arguments.seed)
    with Progress(len(STAGES), redraw=0.0) as progress:  # few stages, each is shown
        result, memory, patterns = dream(
            arguments.store, config, arguments.namespace, arguments.name, duration=arguments.duration, progress=progress.update
        )
    drawn = [] if arguments.out is None else draw_deep(arguments.out, result, memory, patterns)
    report = deep_report(result, memory, drawn)
    print(as_json(report) if arguments.json else deep_text(report))
    return 0


def _print_snapshot(report: Mapping[str, Any]) -> None:
    from sona.report.table import one_line, size

    print(f"snapshot   {one_line(report['path'])}")
    for about in report["snapshots"]:
        if about["fault"] is not None:
            print(f"  {about['manifest']}: {one_line(about['fault'])}")
            continue
        model = "any model" if about["fingerprint"] is None else f"model {about['fingerprint']!r}"
        arrays = f"{about['arrays']} array{'s' * (about['arrays'] != 1)}"
        print(f"  {about['manifest']}: {arrays}, {size(about['bytes'])}, {one_line(model)}, sona {one_line(about['library'])}, sound")


def _print_store(report: Mapping[str, Any]) -> None:
    from sona.report.table import one_line, size

    print(f"store      {one_line(report['path'])}, {size(report['file_bytes'])}")
    for name, namespace in report["namespaces"].items():
        state = "sound" if not namespace["faults"] else f"{len(namespace['faults'])} fault{'s' * (len(namespace['faults']) != 1)}"
        print(f"  {name}: {namespace['decisions']} decisions, {size(namespace['bytes'])}, {state}")
        for fault in namespace["faults"]:
            print(f"    {one_line(fault)}")
