"""What ``sona inspect``, ``sona versions`` and ``sona rollback`` do with a store that no process learns for."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sona.adapters import Factors, Version
from sona.adapters.versions import find, keep_served
from sona.errors import SonaCorruptError, SonaStoreError, SonaValueError
from sona.health import namespaces_of
from sona.loops.journal import decode_state, encode_state, learners
from sona.loops.patterns import kept_patterns
from sona.loops.trial import on_trial
from sona.loops.versions import StoredVersions
from sona.store import SqliteStore


def contents(path: str | os.PathLike[str]) -> dict[str, Any]:
    """
    Decisions, rewards, arms, learned states, patterns and versions of every namespace of a store file.

    Raises
    ------
    SonaStoreError, SonaCorruptError, SonaVersionError
        There is no such file, or it is not a store that this version reads.
    """
    found = {}
    for namespace in namespaces_of(path):
        with SqliteStore(path, namespace=namespace) as store:
            arms = store.latest_arms()
            found[namespace] = {
                "decisions": store.count(),
                "rewards": store.last_seq(),
                "arms": 0 if arms is None else sum(name != "null" for name in arms[1]),
                "sources": {source: count for source, (count, _) in store.sources().items()},
                "bytes": store.bytes(),
                "states": {name: _state(store, name) for name in learners(store)},
            }
    return {"path": os.fspath(path), "file_bytes": Path(path).stat().st_size, "namespaces": found}


def _state(store: SqliteStore, name: str) -> dict[str, Any]:
    kept = store.get_state(name)
    assert kept is not None
    blob = kept[0]
    arrays, _ = decode_state(blob)
    versions = StoredVersions(store, name).all()
    return {
        "bytes": len(blob),
        "dim": int(arrays["layer0.down"].shape[1]),
        "rank": len(arrays["layer0.down"]),
        "patterns": kept_patterns(store, name),
        "versions": len(versions),
        "published": next((version.id for version in versions if version.published), None),
        "trial": on_trial(arrays),
    }


def versions_of(path: str | os.PathLike[str], namespace: str = "default", name: str = "default") -> list[Version]:
    """The versions of a name, oldest first; SonaStoreError when there is no such file or namespace."""
    with _opened(path, namespace) as store:
        return StoredVersions(store, name).all()


def _opened(path: str | os.PathLike[str], namespace: str) -> SqliteStore:
    known = namespaces_of(path)
    if namespace not in known:
        raise SonaStoreError(f"{os.fspath(path)}: expected one of the namespaces {', '.join(known)}, got {namespace!r}")
    return SqliteStore(path, namespace=namespace)


def roll_back(path: str | os.PathLike[str], wanted: str | int, namespace: str = "default", name: str = "default") -> Version:
    """
    Put the correction of a kept version into the stored state; it is served when the next process opens the store.

    The correction until now is kept as a version, and state and published version change in one transaction. A trial ends.

    Raises
    ------
    SonaValueError
        There is no such version.
    SonaStoreError
        No such file, namespace or state; or a process learns for the store.
    SonaVersionError
        The version does not fit the state.
    """
    with _opened(path, namespace) as store:
        if not store.try_lease():
            raise SonaStoreError(f"{store.path}: a process learns for namespace {namespace!r}; call engine.rollback() there")
        versions = StoredVersions(store, name)
        version = find(versions.all(), wanted)
        state = store.get_state(name)
        if state is None:
            raise SonaStoreError(f"{store.path}: there is no state {name!r}")
        arrays, meta = decode_state(state[0])
        try:
            before = Factors(arrays["layer0.down"], arrays["layer0.up"], arrays["layer0.offset"])
        except (KeyError, SonaValueError) as error:
            raise SonaCorruptError(f"{store.path}: state {name!r} is not that of an engine: {error}") from error
        version.factors.check(before.down.shape[1], f"version {version.id}")
        keep_served(versions, before, version, time.time())
        one = version.factors
        arrays = {key: value for key, value in arrays.items() if not key.startswith("trial.")}
        arrays |= {"layer0.down": one.down, "layer0.up": one.up, "layer0.offset": one.offset, "layer0.base": np.array([len(one.down)])}
        store.put_state(name, encode_state(arrays, meta), state[1], publish=version.number)
        return replace(version, published=True)
