"""What the commands' arguments have in common."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sona.progress import Progress

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def versioned(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", help="a file or a URL")
    parser.add_argument("--namespace", default="default", metavar="NAME", help="of the store (default: default)")
    parser.add_argument("--name", metavar="NAME", help="of the engine or router (default: the one that is there, or default)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def learner(arguments: argparse.Namespace) -> str:
    """The name that was given, or that of the one learner of the store."""
    from sona.contents import only_learner

    return arguments.name if arguments.name is not None else only_learner(arguments.store, arguments.namespace)


def common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=whole(0, 2**32 - 1), default=0, help="of everything random (default: 0)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def whole(low: int, high: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected a whole number in {low}..{high}, got {text!r}")
        return value

    return number


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds, a number of at least 0, got {text!r}")
    return value


def share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a share in [0, 1), got {text!r}")
    return value


def progress(total: int) -> Progress:
    from sona.progress import Progress

    return Progress(total)
