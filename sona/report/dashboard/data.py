"""What the page shows, part by part, as plain values: aggregated here, so that a large store sends no more than a small one."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from sona.contents import ask_rollback, roll_back
from sona.errors import SonaCorruptError, SonaError, SonaStoreError, SonaValueError
from sona.loops.journal import decode_state, learners
from sona.loops.memory import state_name as memory_name
from sona.loops.patterns import state_name as patterns_name
from sona.loops.trial import on_trial
from sona.loops.versions import StoredVersions
from sona.report.dashboard import learned, outcomes
from sona.report.dashboard.endpoint import Endpoint
from sona.store import open_store
from sona.store.open import namespaces_of, shown

BUCKETS = 120  # points of a line
LEAST = 25  # rewards of a point: fewer, and one sees noise
NEWEST = 1_000_000  # rewards that can be asked for at most
TRAJECTORIES = 10_000  # whose qualities are read
KEPT = 4  # answers of a part, for as many choices of `newest`
PATIENCE = 3.0  # s that a process that learns has for a wish before somebody else looks whether there still is one
PARTS = ("overview", "rewards", "outcomes", "versions", "patterns", "memory", "processes")


class Board:
    """
    A store that is looked at. Reading takes no lease and writes nothing.

    Parameters
    ----------
    where : path or URL
    namespace, name : str
        Of the learner.
    metrics : sequence of str
        Addresses of processes' Prometheus endpoints, see `Endpoint`.

    Raises
    ------
    SonaStoreError, SonaCorruptError, SonaVersionError
        There is no such store or namespace, or it is not one that this version reads.
    SonaValueError
        An address that is not on this machine.

    Thread-safety
    -------------
    Any thread. The same part is computed once at a time, and again only when the store has something new.
    """

    def __init__(
        self, where: str | os.PathLike[str], *, namespace: str = "default", name: str = "default", metrics: Sequence[str] = ()
    ) -> None:
        known = namespaces_of(where)
        if namespace not in known:
            raise SonaStoreError(f"{shown(where)}: expected one of the namespaces {', '.join(known)}, got {namespace!r}")
        self.where, self.namespace, self.name = where, namespace, name
        self._endpoints = [Endpoint(each) for each in metrics]
        self._store = open_store(where, namespace=namespace)
        self._locks = {part: threading.Lock() for part in PARTS}
        self._granting, self._grant_at = threading.Lock(), 0.0
        self._cache: dict[tuple[str, int], tuple[str, dict[str, Any]]] = {}

    def close(self) -> None:
        """A second call does nothing."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # ---- what there is ----

    def tags(self) -> dict[str, str]:
        """Part -> a text that is another one when there is something new in it. Cheap."""
        marks = self._store.marks()
        patterns, memory = (marks.get(f"state {kept(self.name)}", 0) for kept in (patterns_name, memory_name))
        records = f"{marks['rewards']}.{marks['decisions']}.{marks['trajectories']}"
        state = marks.get(f"state {self.name}", 0)
        served = f"{marks['versions']}.{marks.get(f'served {self.name}')}.{marks.get(f'publish {self.name}')}"
        return {
            "overview": f"{records}.{state}.{served}",
            "rewards": f"{marks['rewards']}.{marks['trajectories']}",
            "outcomes": f"{marks['rewards']}",
            "versions": f"{served}.{state}",
            "patterns": str(patterns),
            "memory": str(memory),
        }

    def part(self, part: str, newest: int = 100_000) -> dict[str, Any]:
        """
        One of `PARTS`, with its "tag" as of when it was read.

        Parameters
        ----------
        newest : int
            Rewards that it is made of, for "rewards" and "outcomes"; 1 to 1 000 000.
        """
        if part not in PARTS:
            raise SonaValueError(f"part: expected one of {', '.join(PARTS)}, got {part!r}")
        if not 1 <= newest <= NEWEST:
            raise SonaValueError(f"newest: expected 1 to {NEWEST}, got {newest}")
        if part == "processes":
            return {"tag": "", "processes": [endpoint.read() for endpoint in self._endpoints]}
        make: Callable[[int], dict[str, Any]] = getattr(self, f"_{part}")
        key = (part, newest if part in ("rewards", "outcomes") else 0)
        with self._locks[part]:
            tag = self.tags()[part]
            if key not in self._cache or self._cache[key][0] != tag:
                for old in [each for each in list(self._cache) if each[0] == part][: 1 - KEPT]:
                    del self._cache[old]
                self._cache[key] = (tag, plain(make(newest)))
            return {"tag": tag, **self._cache[key][1]}

    def _overview(self, newest: int) -> dict[str, Any]:
        store, name = self._store, self.name
        arms = store.latest_arms()
        return {
            "path": store.path,
            "namespace": self.namespace,
            "name": name,
            "names": learners(store),
            "decisions": store.count(),
            "rewards": store.last_seq(),
            "pruned": store.pruned_decisions,
            "arms": 0 if arms is None else sum(listed != "null" for listed in arms[1]),
            "bytes": store.bytes(),
            "published": store.published(name),
            "asked": store.asked(name),
            **self._state(),
        }

    def _state(self) -> dict[str, Any]:
        """Of the learner's state; what is damaged is said, and the rest is shown."""
        nothing: dict[str, Any] = {"state": None, "trial": None, "alarms": None, "alarm_times": [], "damage": None}
        try:
            kept = self._store.get_state(self.name)
            if kept is None:
                return nothing
            arrays, _ = decode_state(kept[0])
            down = arrays["layer0.down"]
            watched = "drift.alarms" in arrays
            return {
                "state": {"dim": int(down.shape[1]), "rank": len(down), "bytes": len(kept[0]), "rewards": kept[1]},
                "trial": on_trial(arrays),
                "alarms": int(arrays["drift.alarms"][0]) if watched else None,
                "alarm_times": arrays.get("drift.times", arrays["drift.time"][:0]).tolist() if watched else [],
                "damage": None,
            }
        except (SonaCorruptError, KeyError, IndexError, ValueError) as error:
            return nothing | {"damage": f"state {self.name!r}: {error}"}

    def _rewards(self, newest: int) -> dict[str, Any]:
        series = self._store.reward_series(newest, min(BUCKETS, max(min(newest, self._store.last_seq()) // LEAST, 1)))
        return {
            "rewards": [
                {"count": n, "mean": total / n, "error": outcomes.standard_error(n, total, squares), "from": first, "to": last}
                for n, total, squares, first, last in series
            ],
            "trajectories": [] if series else self._trajectories(newest),
        }

    def _trajectories(self, newest: int) -> list[dict[str, Any]]:
        rows = np.array(self._store.qualities(min(newest, TRAJECTORIES)), np.float64).reshape(-1, 2)
        result = []
        for some in np.array_split(rows, min(BUCKETS, max(len(rows), 1))):
            if n := len(some):
                total, squares = float(some[:, 1].sum()), float((some[:, 1] ** 2).sum())
                about = {"count": n, "mean": total / n, "error": outcomes.standard_error(n, total, squares)}
                result.append(about | {"from": float(some[0, 0]), "to": float(some[-1, 0])})
        return result

    def _outcomes(self, newest: int) -> dict[str, Any]:
        return outcomes.outcomes(self._store, newest)

    def _versions(self, newest: int) -> dict[str, Any]:
        try:
            versions, damage = [version.as_dict() for version in StoredVersions(self._store, self.name).all()], None
        except (SonaCorruptError, KeyError, ValueError) as error:
            versions, damage = [], str(error)
        return {"versions": versions[::-1], "asked": self._store.asked(self.name), "trial": self._state()["trial"], "damage": damage}

    def _patterns(self, newest: int) -> dict[str, Any]:
        return learned.patterns(self._store, self.name)

    def _memory(self, newest: int) -> dict[str, Any]:
        return learned.memory(self._store, self.name)

    # ---- what can be done ----

    def rollback(self, version: int) -> dict[str, Any]:
        """Serve a version again, or ask the process that learns to; see `ask_rollback`."""
        self._grant_at = time.monotonic() + PATIENCE
        chosen, done = ask_rollback(self.where, version, self.namespace, self.name)
        return {"id": chosen.id, "number": chosen.number, "done": done}

    def grant(self) -> None:
        """Do what was asked for and not done, where no process learns by now; looks once in a while."""
        with self._granting:
            asked = self._store.asked(self.name)
            if asked is None or asked < 0 or time.monotonic() < self._grant_at:
                return
            self._grant_at = time.monotonic() + PATIENCE
            try:
                roll_back(self.where, asked, self.namespace, self.name)
            except SonaStoreError:  # a process learns, or the store cannot be written: the wish stays
                return
            except SonaError:
                self._store.refuse_publish(self.name, asked)


def plain(value: Any) -> Any:
    """For JSON that any browser reads: what is no finite number is None, and ids beyond 2^53 are text."""
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**53:
        return str(value)
    return value
