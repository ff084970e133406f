"""What the background loop knows of the requests: patterns, verdicts on the router's arms, what comes next; kept in the store."""

import hashlib
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sona._arrays import coerce
from sona._fields import whole
from sona._locks import lock
from sona.errors import SonaClosedError, SonaCorruptError, SonaStoreError, SonaVersionError, SonaWarning
from sona.loops._policy import Policy
from sona.loops.journal import PATTERNS, POLL_SECONDS, Arrays, Keeper, decode_state, encode_state
from sona.loops.rows import Rows
from sona.loops.ruling import at_least
from sona.patterns import LearnedPattern, PatternConfig, PatternHierarchy, ReasoningBank, Transitions, Verdict
from sona.store import Store
from sona.store.rows import SEQUENCE_BITS

FORMAT = 1
MAX_TRANSITIONS = 20_000  # pairs of patterns: 24 bytes each in the store

log = logging.getLogger(__name__)

_VERDICT = {f.name: np.int64 if f.name in ("pattern", "arm", "count") else np.float64 for f in fields(Verdict)}


@dataclass(frozen=True, slots=True, eq=False)
class PatternMatch:
    """
    A pattern beside a request.

    Attributes
    ----------
    pattern : LearnedPattern
    similarity : float
        Cosine of the angle between its centroid and the request.
    verdicts : tuple of Verdict
        Arms that did better or worse on it than the others, best improvement first; `arm` is the router's name of the arm.
    """

    pattern: LearnedPattern
    similarity: float
    verdicts: tuple[Verdict, ...]

    @property
    def id(self) -> int:
        """The same from cycle to cycle and after a restart."""
        return self.pattern.id

    @property
    def quality(self) -> float:
        """Mean reward of its requests, in [0, 1]."""
        return self.pattern.avg_quality


@dataclass(frozen=True, slots=True, eq=False)
class Findings:
    """
    What a cycle found; the next one makes others.

    Attributes
    ----------
    bank : ReasoningBank
    transitions : Transitions
    verdicts : list of Verdict
        `arm` is the text of the arm's name.
    followed : (n,) uint64
        Ids of the window's decisions, whose transitions are counted.
    """

    bank: ReasoningBank
    transitions: Transitions
    verdicts: list[Verdict]
    followed: npt.NDArray[np.uint64]


class RequestPatterns:
    """
    The patterns of a router's rewarded requests.

    Parameters
    ----------
    config : PatternConfig
    policy : Policy or None
        Whose arms the verdicts name; without one there are no patterns.
    journal : Keeper or None
        Of the same learner, opened. The process that leads keeps patterns, verdicts and transitions in the store after each cycle, and
        never a request; the others follow within a second of a lookup.
    clock : callable
        Monotonic seconds.

    Warns
    -----
    SonaWarning
        What the store keeps is damaged, or of another dim. Patterns are found anew from the stored decisions then, under new ids.

    Raises
    ------
    SonaVersionError
        A newer sona wrote it.

    Thread-safety
    -------------
    Lookups: any thread, also during a cycle.
    """

    def __init__(
        self, config: PatternConfig, policy: Policy | None, journal: Keeper | None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._config, self._policy, self._journal, self._clock = config, policy, journal, clock
        self._digest = b""  # of what was last read from the store, or written there
        self.reset()
        self._next_look = -np.inf
        self._looking = lock()
        if journal is not None:
            self._state_name = state_name(journal.name)
            self.follow(now=True)

    # ---- lookups ----

    @property
    def bank(self) -> ReasoningBank:
        """The patterns, and the trajectories of the last cycle of this process."""
        return self._found.bank

    @property
    def transitions(self) -> Transitions:
        """Which pattern followed which, and whether knowing that helps."""
        return self._found.transitions

    @property
    def verdicts(self) -> list[Verdict]:
        """Those of the last cycle that was followed; `arm` is the text of the arm's name, also of one that has been removed since."""
        return list(self._found.verdicts)

    def find(self, x: Any, k: int = 5) -> list[PatternMatch]:
        """See `SonaEngine.find_patterns`."""
        self.follow()
        found = self._found
        names = self._names()
        verdicts = [replace(v, arm=names.get(v.arm, v.arm)) for v in found.verdicts if self._policy is None or v.arm in names]
        return [
            PatternMatch(pattern, pattern.similarity(x), tuple(v for v in verdicts if v.pattern == pattern.id))
            for pattern in found.bank.find_patterns(x, k)
        ]

    def next(self, x: Any, k: int = 5) -> list[tuple[int, float]]:
        """See `SonaEngine.next_patterns`."""
        x, k = coerce(x, (self._config.embedding_dim,), "x"), at_least("k", whole(k, "k"), 0)
        self.follow()
        found = self._found
        (current,) = found.bank.assign(x[None]).tolist()
        return found.transitions.predict(current)[:k]

    def current(self) -> list[LearnedPattern]:
        """All patterns, also those that the process that leads has found since."""
        self.follow(now=True)
        return self._found.bank.patterns

    def hierarchy(self) -> PatternHierarchy:
        """Ward's tree over the patterns."""
        self.follow()
        return self._found.bank.hierarchy()

    def _names(self) -> dict[str, Any]:
        """Text of a name -> name, of today's arms."""
        return {} if self._policy is None else {str(name): name for name in self._policy.arms}

    # ---- a cycle ----

    def learn(self, rows: Rows) -> Findings:
        """
        One cycle over the window's rows; nothing changes until `take`.

        The trajectories are these rows, no others: what a store has forgotten, an arm that is gone and a reward that was replaced leave no
        trace in the next verdicts. Transitions are counted from a process's rewarded decisions, in the order in which it made them, each
        when both have been in one window.
        """
        assert self._policy is not None
        self.follow(now=True)
        old = self._found
        names = self._policy.names_by_row()
        bank = ReasoningBank.from_state(self._config, old.bank.state(trajectories=False))
        bank.replace(rows.x, rows.reward, arm=rows.arm, reward=rows.reward)
        bank.extract_patterns()
        verdicts = [replace(v, arm=str(names[v.arm])) for v in bank.verdicts() if names[v.arm] is not None]
        order = np.argsort(rows.id)
        ids = rows.id[order]
        transitions = Transitions.from_state(old.transitions.state(), max_transitions=MAX_TRANSITIONS)
        transitions.keep(pattern.id for pattern in bank.patterns)
        if bank.patterns:
            pattern = bank.assign(rows.x[order]).tolist()
            same_process = (ids[1:] ^ ids[:-1]) >> np.uint64(SEQUENCE_BITS) == 0
            for at in np.flatnonzero(same_process & ~np.isin(ids[1:], old.followed)).tolist():
                transitions.observe(pattern[at], pattern[at + 1])
        return Findings(bank, transitions, verdicts, ids)

    def take(self, found: Findings) -> None:
        """Look things up in these findings from now on, and keep them; a store that cannot be written gets those of the next cycle."""
        self._found = found
        if self._journal is None or not self._journal.leading:
            return
        blob = _encoded(found)
        try:
            self._journal.store.put_state(self._state_name, blob, 0, term=self._journal.term)
        except SonaStoreError as error:
            log.warning("patterns: %s", error, extra={"event": "patterns.not_saved", "error": str(error)})
            return
        self._digest = hashlib.sha256(blob).digest()

    def reset(self) -> None:
        """Know nothing; what is in a store stays there."""
        self._found = Findings(ReasoningBank(self._config), _transitions(), [], np.empty(0, np.uint64))
        self._digest = b""

    def follow(self, *, now: bool = False) -> None:
        """Read what the process that leads has kept since; the leader itself looks only `now`, before a cycle."""
        journal = self._journal
        if journal is None or not (now or (not journal.leading and self._clock() >= self._next_look)):
            return
        with self._looking:
            self._next_look = self._clock() + POLL_SECONDS
            try:
                kept = journal.store.get_state(self._state_name)
                digest = b"" if kept is None else hashlib.sha256(kept[0]).digest()
                if digest == self._digest:
                    return
                if kept is None:  # the process that leads has forgotten a source
                    self.reset()
                    return
                self._digest = digest
                self._found = _decoded(kept[0], self._config)
            except SonaCorruptError as error:
                text = f"patterns {self._state_name!r}: {error}; the next cycle finds them anew, under new ids"
                warnings.warn(text, SonaWarning, stacklevel=3)
            except SonaClosedError:  # by a fork: what was known then is known here
                if now:
                    raise
            except SonaStoreError as error:
                if now:
                    raise
                log.warning("patterns: %s", error, extra={"event": "patterns.unreadable", "error": str(error)})


def state_name(name: str) -> str:
    """Under which the patterns of a learner of that name are kept in a store."""
    return f"{name[:40]}{PATTERNS}{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def kept_patterns(store: Store, name: str) -> int:
    """Patterns that a store keeps for the learner of that name. SonaCorruptError when they are damaged."""
    kept = store.get_state(state_name(name))
    return 0 if kept is None else len(decode_state(kept[0])[0].get("bank.patterns.id", ()))


def _transitions() -> Transitions:
    return Transitions(max_transitions=MAX_TRANSITIONS)


def _encoded(found: Findings) -> bytes:
    arms = sorted({verdict.arm for verdict in found.verdicts})
    rows = [replace(verdict, arm=arms.index(verdict.arm)) for verdict in found.verdicts]
    arrays: Arrays = {"followed": found.followed}
    arrays |= {f"bank.{name}": array for name, array in found.bank.state(trajectories=False).items()}
    arrays |= {f"transitions.{name}": array for name, array in found.transitions.state().items()}
    arrays |= {f"verdicts.{name}": np.array([getattr(row, name) for row in rows], dtype) for name, dtype in _VERDICT.items()}
    return encode_state(arrays, {"format": FORMAT, "arms": arms})


def _decoded(blob: bytes, config: PatternConfig) -> Findings:
    arrays, meta = decode_state(blob)
    if meta.get("format", 0) > FORMAT:
        raise SonaVersionError(f"patterns: expected format {FORMAT} or older, got {meta['format']}")
    try:
        arms = [str(arm) for arm in meta["arms"]]
        columns = {name: arrays[f"verdicts.{name}"].astype(dtype, casting="same_kind") for name, dtype in _VERDICT.items()}
        rows = [Verdict(*row) for row in zip(*(column.tolist() for column in columns.values()), strict=True)]
        verdicts = [replace(row, arm=arms[row.arm]) for row in rows]
        followed = arrays["followed"].astype(np.uint64, casting="same_kind")
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise SonaCorruptError(f"expected what sona wrote, got: {error}") from error
    bank = ReasoningBank.from_state(config, _part(arrays, "bank."))
    transitions = Transitions.from_state(_part(arrays, "transitions."), max_transitions=MAX_TRANSITIONS)
    return Findings(bank, transitions, verdicts, followed)


def _part(arrays: Arrays, prefix: str) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
