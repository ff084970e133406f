"""sona dashboard: a page about a store, for the machine that it is on."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from sona.cli.arguments import learner, versioned, whole

if TYPE_CHECKING:
    from sona.cli.arguments import Commands


def add_dashboard(commands: Commands) -> None:
    dashboard = commands.add_parser(
        "dashboard",
        help="a page about a store, in the browser of this machine: rewards, regret, versions, patterns, memory, alarms",
        description="Serves a page on 127.0.0.1 until Ctrl-C, without anything from elsewhere. The store is only read, also while a "
        "process learns for it, but for a button that serves a version again, as `sona rollback` does: where a process learns, it does "
        "that itself within seconds. Open the address that is printed: the token in it is the key.",
    )
    versioned(dashboard)
    dashboard.add_argument("--port", type=whole(0, 65535), default=0, metavar="N", help="default: one that is free")
    dashboard.add_argument(
        "--metrics",
        action="append",
        default=[],
        metavar="URL",
        help="Prometheus endpoint of a serving process on this machine, for latencies and drops; may be repeated",
    )
    dashboard.set_defaults(run=_dashboard)


def _dashboard(arguments: argparse.Namespace) -> int:
    from sona.report.dashboard import Dashboard

    dashboard = Dashboard(
        arguments.store, namespace=arguments.namespace, name=learner(arguments), port=arguments.port, metrics=arguments.metrics
    )
    try:
        text = json.dumps({"url": dashboard.url}) if arguments.json else f"{dashboard.url}\nCtrl-C ends it"
        print(text, flush=True)
        dashboard.serve()
    except KeyboardInterrupt:
        pass
    finally:
        dashboard.close()
    return 0
