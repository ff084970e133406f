"""What ``sona doctor`` and ``sona verify`` report: this machine, and whether a store or a snapshot is sound."""

from __future__ import annotations

import os
import sqlite3
from importlib import metadata
from typing import Any

from sona import isas
from sona._kernels import Kernels
from sona.simulate import cpu_name, machine
from sona.store import check_snapshot, open_store
from sona.store.open import namespaces_of, shown

REQUIRED = ("numpy", "scipy", "scikit-learn", "networkx", "safetensors")
OPTIONAL = {  # package -> extra
    "matplotlib": "plot",
    "usearch": "ann",
    "psycopg": "postgres",
    "pgvector": "postgres",
    "prometheus-client": "prometheus",
    "opentelemetry-api": "opentelemetry",
    "torch": "torch",
    "gguf": "gguf",
    "pyarrow": "parquet",
}


def machine_report() -> dict[str, Any]:
    """
    Versions, processor, instruction sets, the one in use, and the environment variables that change what sona does.

    Raises
    ------
    SonaValueError
        SONA_ISA names an instruction set that this machine cannot run.
    """
    return {
        **machine(),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "isas": list(isas()),
        "isa": Kernels().isa,
        "sqlite": sqlite3.sqlite_version,
        "packages": {name: _version(name) for name in (*REQUIRED, *OPTIONAL)},
        "environment": {name: os.environ[name] for name in ("SONA_ISA", "SONA_DISABLE", "SONA_LOG") if name in os.environ},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def store_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Size, contents and faults of every namespace of a store, a file or a URL.

    Raises
    ------
    SonaStoreError, SonaCorruptError, SonaVersionError
        There is no such store, or it is not one that this version reads.
    """
    namespaces, size = {}, 0
    for name in namespaces_of(path):
        with open_store(path, namespace=name) as store:
            namespaces[name] = {"decisions": store.count(), "bytes": store.bytes(), "faults": store.integrity()}
            size = store.file_bytes()
    return {"path": shown(path), "file_bytes": size, "namespaces": namespaces}


def snapshot_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What is in a snapshot directory, the newest snapshot first, and what is wrong with it.

    Raises
    ------
    SonaStoreError
        There is no snapshot, or it cannot be read.
    """
    return {"path": os.fspath(path), "snapshots": check_snapshot(path)}


def faults(report: dict[str, Any]) -> list[str]:
    """Every fault of a :func:`store_report` or :func:`snapshot_report`, one sentence each, once each."""
    if "snapshots" in report:
        return [about["fault"] for about in report["snapshots"] if about["fault"] is not None]
    return list(dict.fromkeys(fault for namespace in report["namespaces"].values() for fault in namespace["faults"]))
