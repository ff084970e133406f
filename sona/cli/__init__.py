"""The command ``sona``. Exit codes: 0 it worked, 1 an error with one clear line, 2 wrong usage, 130 Ctrl-C."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from sona._version import __version__
from sona.cli.dashboard import add_dashboard
from sona.cli.export import add_export
from sona.cli.health import add_doctor, add_inspect, add_verify
from sona.cli.learning import add_demo, add_learn, add_replay
from sona.cli.stored import add_dream, add_rollback, add_versions
from sona.errors import SonaError, SonaValueError

# In the order of `sona --help`.
COMMANDS = (
    add_demo,
    add_replay,
    add_learn,
    add_doctor,
    add_verify,
    add_inspect,
    add_dashboard,
    add_versions,
    add_rollback,
    add_dream,
    add_export,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code instead of exiting, except where argparse does."""
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.run
    try:
        _log_to_stderr(os.environ.get("SONA_LOG", ""))
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


def _log_to_stderr(how: str) -> None:
    """With `text` or `json`, what the logger `sona` says from info on; otherwise warnings alone, as Python prints them."""
    if not how:
        return
    if how not in ("text", "json"):
        raise SonaValueError(f"SONA_LOG: expected 'text' or 'json', got {how!r}")
    import logging

    from sona.log import JsonFormatter

    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if how == "json" else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("sona")
    if not logger.handlers:  # else the program that calls this has its own
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def _fail(message: str) -> int:
    from sona.report.table import one_line

    print(f"sona: error: {one_line(message)}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sona", description="Sits beside a frozen model and learns from each piece of feedback.")
    parser.add_argument("--version", action="version", version=f"sona {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    return parser
