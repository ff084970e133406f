"""sona versions, rollback and dream: what works on a store."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sona.cli.arguments import learner, seconds, versioned, whole

if TYPE_CHECKING:
    from sona.cli.arguments import Commands


def add_versions(commands: Commands) -> None:
    versions = commands.add_parser("versions", help="what was served and what was proposed, with the verdicts on it")
    versioned(versions)
    versions.set_defaults(run=_versions)


def add_rollback(commands: Commands) -> None:
    rollback = commands.add_parser(
        "rollback",
        help="serve a version of a store again",
        description="Puts the corrections of a kept version into the stored state; they are served from the next start on. Where a process "
        "learns for the store, that is asked instead, and serves them at its next reward or tick. What was served until now is kept as a "
        "version, so this can be undone.",
    )
    versioned(rollback)
    rollback.add_argument("version", metavar="VERSION", help="number or id, as `sona versions` prints them")
    rollback.set_defaults(run=_rollback)


def add_dream(commands: Commands) -> None:
    dream = commands.add_parser(
        "dream",
        help="one deep cycle over a store: its memory takes in what was learned, dreams and is tidied up",
        description="What the store serves does not change. Refused while a process learns for the store: call engine.deep_learn() there. "
        "A cycle that is killed leaves the memory of before; one that runs out of time keeps what it has.",
    )
    versioned(dream)
    dream.add_argument("--dreams", type=whole(0, 10_000), default=50, metavar="N", help="how many dreams (default: 50)")
    dream.add_argument("--duration", type=seconds, default=600.0, metavar="S", help="seconds that the cycle may take (default: 600)")
    dream.add_argument(
        "--out",
        metavar="DIR",
        help="draw a dream, the cut of its Phi, the patterns, and the memory over its cycles: dream.png, partition.png, patterns.png and "
        "quality.png, as far as there is something to draw; needs matplotlib",
    )
    dream.add_argument("--seed", type=whole(0, 2**32 - 1), default=0, help="of everything random (default: 0)")
    dream.set_defaults(run=_dream)


def _versions(arguments: argparse.Namespace) -> int:
    from sona.contents import versions_of
    from sona.report import as_json
    from sona.report.table import one_line

    found = versions_of(arguments.store, arguments.namespace, learner(arguments))
    if arguments.json:
        print(as_json({"versions": [version.as_dict() for version in found]}))
        return 0
    if not found:
        print("no versions")
    for version in found:
        print(f"{'*' if version.published else ' '} {version.id}  {version.verdict}  {one_line(version.reason)}")
    return 0


def _rollback(arguments: argparse.Namespace) -> int:
    from sona.contents import ask_rollback
    from sona.report import as_json

    version, done = ask_rollback(arguments.store, arguments.version, arguments.namespace, learner(arguments))
    if arguments.json:
        print(as_json(version.as_dict() | {"done": done}))
    elif done:
        print(f"{version.id} is served from the next start on")
    else:
        print(f"{version.id} is asked for: the process that learns for this store serves it at its next reward or tick")
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
            arguments.store, config, arguments.namespace, learner(arguments), duration=arguments.duration, progress=progress.update
        )
    drawn = [] if arguments.out is None else draw_deep(arguments.out, result, memory, patterns)
    report = deep_report(result, memory, drawn)
    print(as_json(report) if arguments.json else deep_text(report))
    return 0
