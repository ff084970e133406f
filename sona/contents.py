"""What ``sona inspect``, ``versions``, ``rollback`` and ``dream`` do with a store that no process learns for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from sona.adapters import Version
from sona.adapters.versions import find, keep_served, replaced_by
from sona.errors import SonaCorruptError, SonaStoreError, SonaValueError
from sona.loops.deep import DeepLoop, DeepLoopConfig, DeepResult
from sona.loops.episodes import Episodes
from sona.loops.journal import Arrays, decode_state, encode_state, learners
from sona.loops.learner import layers_of
from sona.loops.limits import Sources
from sona.loops.memory import Memory, kept_nodes
from sona.loops.patterns import RequestPatterns, kept_patterns
from sona.loops.trial import on_trial
from sona.loops.versions import StoredVersions
from sona.patterns import LearnedPattern, PatternConfig
from sona.store import Store, open_store
from sona.store.open import namespaces_of, shown

T = TypeVar("T")


def contents(path: str | os.PathLike[str]) -> dict[str, Any]:
    """
    Decisions, rewards, arms, learned states, patterns and versions of every namespace of a store, a file or a URL, and its faults: what is
    damaged counts as nothing, and the rest is there.

    Raises
    ------
    SonaStoreError, SonaCorruptError, SonaVersionError
        There is no such store, or it is not one that this version reads.
    """
    found, size = {}, 0
    for namespace in namespaces_of(path):
        with open_store(path, namespace=namespace) as store:
            size = store.file_bytes()
            faults: list[str] = []
            arms = _sound(store.latest_arms, faults)
            found[namespace] = {
                "decisions": store.count(),
                "rewards": store.last_seq(),
                "arms": 0 if arms is None else sum(name != "null" for name in arms[1]),
                "sources": {source: count for source, (count, _) in store.sources().items()},
                "bytes": store.bytes(),
                "states": {name: _state(store, name, faults) for name in learners(store)},
                "faults": faults,
            }
    return {"path": shown(path), "file_bytes": size, "namespaces": found}


def _sound(read: Callable[[], T], faults: list[str]) -> T | None:
    """What `read` returns; None, and the reason among the faults, where that part of the store is damaged."""
    try:
        return read()
    except (SonaCorruptError, SonaValueError, KeyError, IndexError) as error:
        faults.append(str(error) if isinstance(error, SonaCorruptError) else f"expected what sona wrote, got: {error!r}")
        return None


def _state(store: Store, name: str, faults: list[str]) -> dict[str, Any]:
    def learned() -> dict[str, Any]:
        kept = store.get_state(name)
        assert kept is not None
        arrays, _ = decode_state(kept[0])
        down = arrays["layer0.down"]
        return {"bytes": len(kept[0]), "dim": int(down.shape[1]), "rank": len(down), "trial": on_trial(arrays)}

    versions = _sound(StoredVersions(store, name).all, faults) or []
    return {
        **(_sound(learned, faults) or {"bytes": 0, "dim": 0, "rank": 0, "trial": None}),
        "patterns": _sound(lambda: kept_patterns(store, name), faults) or 0,
        "memory": _sound(lambda: kept_nodes(store, name), faults) or 0,
        "versions": len(versions),
        "published": next((version.id for version in versions if version.published), None),
    }


def versions_of(path: str | os.PathLike[str], namespace: str = "default", name: str = "default") -> list[Version]:
    """The versions of a name, oldest first; SonaStoreError when there is no such file or namespace."""
    with _opened(path, namespace) as store:
        return StoredVersions(store, name).all()


def _opened(path: str | os.PathLike[str], namespace: str) -> Store:
    known = namespaces_of(path)
    if namespace not in known:
        raise SonaStoreError(f"{shown(path)}: expected one of the namespaces {', '.join(known)}, got {namespace!r}")
    return open_store(path, namespace=namespace)


class _Held:
    """A store whose lease this process holds, for a learner of that name."""

    leading = True

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name, self.term = store, name, store.term


def dream(
    path: str | os.PathLike[str],
    config: DeepLoopConfig,
    namespace: str = "default",
    name: str = "default",
    *,
    duration: float | None = None,
    progress: Callable[[int, str], object] | None = None,
) -> tuple[DeepResult, Memory, list[LearnedPattern]]:
    """
    One deep cycle over what a store has: its result, the memory afterwards, and the patterns that are in it.

    Raises
    ------
    SonaStoreError
        No such file, namespace or state; a process learns for the store; or it cannot be written.
    SonaCorruptError
        The state is not that of an engine.
    """
    with _opened(path, namespace) as store:
        _lead(store, namespace, "engine.deep_learn()")
        arrays, _, _ = _kept(store, name)
        sources = Sources(None)
        try:
            dim = int(arrays["layer0.down"].shape[1])
            sources.restore({key.removeprefix("sources."): array for key, array in arrays.items() if key.startswith("sources.")})
        except (KeyError, IndexError, SonaValueError) as error:
            raise SonaCorruptError(f"{store.path}: state {name!r} is not that of an engine: {error}") from error
        without = sources.quarantined()
        held = _Held(store, name)
        with suppress(SonaCorruptError):  # then the memory warns
            config = replace(config, max_nodes=max(config.max_nodes, kept_nodes(store, name)))
        memory = Memory(dim, held, max_nodes=config.max_nodes)
        patterns = RequestPatterns(PatternConfig(embedding_dim=dim), None, held)
        loop = DeepLoop(config, memory, patterns, lambda newest: Episodes.of_store(store, dim, newest, without=without))
        result = loop.run_cycle(duration=duration, progress=progress)
        return result, memory, patterns.current()


def only_learner(path: str | os.PathLike[str], namespace: str = "default") -> str:
    """
    Name of the one engine or router whose state a namespace keeps; "default" where there is none, or where there are several.

    Raises
    ------
    SonaStoreError
        No such store or namespace.
    """
    with _opened(path, namespace) as store:
        names = learners(store)
    return names[0] if len(names) == 1 else "default"


def _lead(store: Store, namespace: str, instead: str) -> None:
    if not store.try_lease():
        raise SonaStoreError(f"{store.path}: a process learns for namespace {namespace!r}; call {instead} there")


def _kept(store: Store, name: str) -> tuple[Arrays, dict[str, Any], int]:
    """The state of that name, and the number of the last reward in it; SonaStoreError when there is none."""
    state = store.get_state(name)
    if state is None:
        known = ", ".join(learners(store)) or "none"
        raise SonaStoreError(f"{store.path}: there is no state {name!r}; expected one of the names {known} (--name)")
    return (*decode_state(state[0]), state[1])


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
        _lead(store, namespace, "engine.rollback()")
        return _put_back(store, wanted, name)


def ask_rollback(
    path: str | os.PathLike[str], wanted: str | int, namespace: str = "default", name: str = "default"
) -> tuple[Version, bool]:
    """
    `roll_back`; where a process learns for the store, a wish that it serves this version: it grants it at its next reward or tick.

    Returns
    -------
    tuple
        The version, and whether the store has it as the published one already.

    Raises
    ------
    SonaError
        As `roll_back`, but not because a process learns for the store.
    """
    with _opened(path, namespace) as store:
        if store.try_lease():
            return _put_back(store, wanted, name), True
        version = find(StoredVersions(store, name).all(), wanted)
        store.ask_publish(name, version.number)
        return version, False


def _put_back(store: Store, wanted: str | int, name: str) -> Version:
    """For who holds the lease."""
    versions = StoredVersions(store, name)
    version = find(versions.all(), wanted)
    arrays, meta, applied = _kept(store, name)
    before = layers_of(arrays, f"{store.path}: state {name!r}")
    version.check(before[0].down.shape[1], len(before))
    keep_served(versions, name, before, time.time(), reason=replaced_by(version), spare=version.number)
    arrays = {key: value for key, value in arrays.items() if not key.startswith("trial.")}
    for number, one in enumerate(version.layers):
        rows = {"down": one.down, "up": one.up, "offset": one.offset, "base": np.array([len(one.down)])}
        arrays |= {f"layer{number}.{key}": value for key, value in rows.items()}
    store.put_state(name, encode_state(arrays, meta), applied, publish=version.number)
    return replace(version, published=True)
