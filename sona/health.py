"""What ``sona doctor`` and ``sona verify`` report: this machine, and whether a store is sound."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import Any

from sona import isas
from sona.errors import SonaCorruptError, SonaStoreError
from sona.simulate import cpu_name, machine
from sona.store import SqliteStore

REQUIRED = ("numpy", "scipy", "scikit-learn", "networkx", "safetensors")
OPTIONAL = {"matplotlib": "plot"}  # package -> extra


def machine_report() -> dict[str, Any]:
    """Versions, processor, instruction sets and the environment variables that change what sona does."""
    return {
        **machine(),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "isas": list(isas()),
        "sqlite": sqlite3.sqlite_version,
        "packages": {name: _version(name) for name in (*REQUIRED, *OPTIONAL)},
        "environment": {name: os.environ[name] for name in ("SONA_ISA", "SONA_DISABLE") if name in os.environ},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def store_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Size, contents and faults of every namespace of a store file.

    Raises
    ------
    SonaStoreError, SonaCorruptError, SonaVersionError
        There is no such file, or it is not a store that this version reads.
    """
    namespaces = {}
    for name in namespaces_of(path):
        with SqliteStore(path, namespace=name) as store:
            namespaces[name] = {"decisions": store.count(), "bytes": store.bytes(), "faults": store.integrity()}
    return {"path": os.fspath(path), "file_bytes": Path(path).stat().st_size, "namespaces": namespaces}


def faults(report: dict[str, Any]) -> list[str]:
    """Every fault of a :func:`store_report`, one sentence each, once each."""
    return list(dict.fromkeys(fault for namespace in report["namespaces"].values() for fault in namespace["faults"]))


def namespaces_of(path: str | os.PathLike[str]) -> list[str]:
    """Names of a store's namespaces, read without writing: to look at a file must not make it, nor a namespace in it."""
    place = Path(path)
    if not place.is_file():
        raise SonaStoreError(f"no such store: {os.fspath(path)!r}")
    try:
        with closing(sqlite3.connect(f"{place.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            return [row[0] for row in connection.execute("SELECT name FROM namespaces ORDER BY name")]
    except sqlite3.Error as error:
        raise SonaCorruptError(f"{os.fspath(path)} is not a sona store that can be read: {error}") from None
