"""Versions: what was served and what was proposed, never changed, named by number and content."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from sona.adapters.factors import Factors, digest
from sona.errors import SonaValueError, SonaVersionError

KEPT = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """
    A correction that was served or proposed, as it was then, with the verdict on it.

    Attributes
    ----------
    name : str
        Of the engine.
    number : int
        From 1 on; 0 while it is not kept yet. Never given out twice.
    parent : int or None
        Number of the version that was served when this one was made; None where that was none.
    created : float
        Wall clock, seconds since the epoch.
    verdict : {"accept", "reject", "undecided", "expired", "served"}
        "undecided" or "reject" when it was made; "accept", "reject" or "expired" for what a candidate had become at the end of its trial;
        "served": no candidate but what an engine had learned when it was kept: on request, or because another version took its place.
    reason : str
        In words, with the figures that mattered.
    metrics : mapping
        Plain numbers by name, "before" (what was served) and "after" (this version) and the evidence of the judges.
    window : mapping
        Numbers of rows by what became of them, and the first and last decision id of those replayed and held out.
    factors : Factors
        Of the first layer.
    further : tuple of Factors
        Of the layers after it. Layers that a version does not hold stay as they are when it is served.
    published : bool
        Whether this is the version that was put in service last.
    """

    name: str
    number: int = 0
    parent: int | None = None
    created: float
    verdict: str
    reason: str
    metrics: Mapping[str, Any] = field(default_factory=dict)
    window: Mapping[str, Any] = field(default_factory=dict)
    factors: Factors = field(repr=False, compare=False)
    further: tuple[Factors, ...] = field(default=(), repr=False, compare=False)
    published: bool = False

    @property
    def id(self) -> str:
        """name@number-digest."""
        return f"{self.name}@{self.number}-{digest(self.layers)}"

    @property
    def layers(self) -> tuple[Factors, ...]:
        """Corrections by layer, from the first on."""
        return (self.factors, *self.further)

    def check(self, dim: int, layers: int) -> None:
        """SonaVersionError unless an engine of that width and number of layers can serve it."""
        if len(self.layers) > layers:
            raise SonaVersionError(f"version {self.id}: expected at most {layers} layers, got {len(self.layers)}")
        for factors in self.layers:
            factors.check(dim, f"version {self.id}")

    def as_dict(self) -> dict[str, Any]:
        """For JSON: everything but the factors, with their number and the rank of the first."""
        names = ("name", "number", "parent", "created", "verdict", "reason", "metrics", "window", "published")
        about = {"rank": len(self.factors.down), "layers": len(self.layers)}
        return {"id": self.id} | {name: getattr(self, name) for name in names} | about


class VersionLog(Protocol):
    """Where versions are kept."""

    def add(self, version: Version, *, spare: int | None = None) -> Version:
        """Keep it, and number `spare` as well, however old that is; returned with its number."""

    def all(self) -> list[Version]:
        """Those that are kept, oldest first."""


class MemoryVersions:
    """The newest 20 versions and the published one, in memory."""

    def __init__(self) -> None:
        self._kept: list[Version] = []
        self._next = 1

    def add(self, version: Version, *, spare: int | None = None) -> Version:
        """Keep it, and number `spare` as well, however old that is; returned with its number."""
        version = replace(version, number=self._next, published=False)
        self._next += 1
        self._kept = [old for old in self._kept if old.published or old.number > version.number - KEPT or old.number == spare]
        self._kept.append(version)
        return version

    def all(self) -> list[Version]:
        """Those that are kept, oldest first."""
        return list(self._kept)

    def drop(self, since: float) -> int:
        """Those made at or after a time (wall clock, s) are not kept any more; how many."""
        before = len(self._kept)
        self._kept = [version for version in self._kept if version.created < since]
        return before - len(self._kept)

    def publish(self, number: int) -> None:
        """From now on this is the published one."""
        if number not in [version.number for version in self._kept]:
            raise SonaValueError(f"version: expected one of {[version.number for version in self._kept]}, got {number}")
        self._kept = [replace(version, published=version.number == number) for version in self._kept]


def find(versions: list[Version], wanted: Version | str | int) -> Version:
    """
    The version with that number, "number" or id.

    Raises
    ------
    SonaValueError
        There is none, or the id names other content.
    """
    text = wanted.id if isinstance(wanted, Version) else str(wanted)
    for version in versions:
        if text in (version.id, str(version.number)):
            return version
    raise SonaValueError(f"version: expected one of {', '.join(v.id for v in versions) or 'none, because there are none'}, got {text!r}")


def keep_served(log: VersionLog, name: str, layers: Sequence[Factors], now: float, *, reason: str, spare: int | None = None) -> Version:
    """Keep what an engine of that name serves as a version; the one that is kept already where it has these very factors."""
    kept, content = log.all(), digest(layers)
    for version in kept:
        if digest(version.layers) == content:
            return version
    parent = next((version.number for version in kept if version.published), None)
    first, *further = layers
    served = Version(name=name, parent=parent, created=now, verdict="served", reason=reason, factors=first, further=tuple(further))
    return log.add(served, spare=spare)


def replaced_by(successor: Version) -> str:
    """Why what was served before is kept."""
    return f"served until {successor.id} took its place"
