"""sona doctor, verify and inspect."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sona.cli.arguments import Commands


def add_doctor(commands: Commands) -> None:
    doctor = commands.add_parser("doctor", help="what sona finds on this machine, and whether a store or a snapshot is sound")
    doctor.add_argument("store", nargs="?", metavar="STORE", help="a store, a file or a URL, or the directory of a snapshot")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(run=_doctor)


def add_verify(commands: Commands) -> None:
    verify = commands.add_parser(
        "verify", help="check every page, checksum and reference of a store, or the files of a snapshot; exit 1 if anything is wrong"
    )
    verify.add_argument("store", metavar="STORE", help="a store, a file or a URL, or the directory of a snapshot")
    verify.add_argument("--json", action="store_true", help="print JSON")
    verify.set_defaults(run=_verify)


def add_inspect(commands: Commands) -> None:
    inspect = commands.add_parser(
        "inspect", help="what a store holds: decisions, rewards, arms, learned state, patterns, versions; exit 1 if a part is damaged"
    )
    inspect.add_argument("store", metavar="STORE", help="a file or a URL")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    inspect.set_defaults(run=_inspect)


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
    print(f"isas       {', '.join(report['isas'])}; {report['isa']} is in use")
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
