"""Decisions, rewards and trajectories of a namespace: appended, and read again."""

import math
from collections.abc import Collection, Iterable, Iterator
from typing import Any, SupportsIndex

from sona.store import namespace
from sona.store.arguments import check_count, id_of, rows_of
from sona.store.namespace import Namespace
from sona.store.rows import (
    DECISION_COLUMNS,
    FEEDBACK_COLUMNS,
    MAX_ID,
    TRAJECTORY_COLUMNS,
    DecisionRow,
    FeedbackRow,
    TrajectoryRow,
)

_LAST_REWARD = "SELECT reward FROM {} WHERE ns = {} AND id = {} AND seq < {}{} ORDER BY seq DESC LIMIT 1"


class Records(Namespace):
    """The methods of a store for its rows."""

    def append(
        self, decisions: Iterable[DecisionRow], feedback: Iterable[FeedbackRow] = (), trajectories: Iterable[TrajectoryRow] = ()
    ) -> int:
        """Write all rows in one transaction; they are durable when this returns.

        A decision whose id is there already stays as it was, so a group may be written again. Several feedback rows may
        share an id: the last counts. A trajectory replaces the one of its id.

        Returns
        -------
        int
            The highest feedback number so far; 0 before any feedback.

        Raises
        ------
        SonaTypeError
            Something that is not a row; nothing is written.
        SonaStoreError
            Disk full, read-only, locked for too long, not reachable; nothing is written and the store stays usable.
        """
        new_decisions = rows_of(DecisionRow, decisions)
        new_feedback = rows_of(FeedbackRow, feedback)
        new_trajectories = rows_of(TrajectoryRow, trajectories)
        last = self._append(new_decisions, new_feedback, new_trajectories)
        self._prune_when_due(len(new_decisions) + len(new_feedback) + len(new_trajectories))
        return last

    def _append(self, decisions: list[DecisionRow], feedback: list[FeedbackRow], trajectories: list[TrajectoryRow]) -> int:
        with self._db.writing() as conn:
            last: int = conn.execute("SELECT last_seq FROM namespaces WHERE ns = ?", (self._ns,)).fetchone()[0]
            if decisions:
                self._insert_decisions(conn, decisions)
            if feedback:
                self._insert_feedback(conn, last + 1, feedback)
                last += len(feedback)
                conn.execute("UPDATE namespaces SET last_seq = ? WHERE ns = ?", (last, self._ns))
            if trajectories:
                self._upsert_trajectories(conn, trajectories)
        return last

    def decision(self, id: SupportsIndex) -> DecisionRow | None:
        """The decision of that id; None when unknown, pruned or forgotten."""
        with self._db.reading() as conn:
            row = conn.execute(f"SELECT {DECISION_COLUMNS} FROM decisions WHERE ns = ? AND id = ?", (self._ns, id_of(id))).fetchone()
        return None if row is None else self._row(DecisionRow, row)

    def decisions_of(self, ids: Iterable[int]) -> dict[int, DecisionRow]:
        """The decisions of those ids that are known, by id; at most 1024 ids."""
        wanted = [id_of(one) for one in ids]
        if not wanted:
            return {}
        listed = ", ".join("?" * len(wanted))
        with self._db.reading() as conn:
            rows = conn.execute(
                f"SELECT {DECISION_COLUMNS} FROM decisions WHERE ns = ? AND id IN ({listed})", (self._ns, *wanted)
            ).fetchall()
        return {row[0]: self._row(DecisionRow, row) for row in rows}

    def rewarded(
        self, ids: Iterable[int], before: int | None = None, *, without: Collection[str] = ()
    ) -> dict[int, tuple[DecisionRow, float | None]]:
        """What `decisions_of` and, of each, `reward` return, read at once."""
        wanted = [id_of(one) for one in ids]
        if before is not None:
            check_count("before", before)
        if not wanted:
            return {}
        reward = _LAST_REWARD.format(self._feedback_by_id, "decisions.ns", "decisions.id", "?", _of_others(without))
        statement = f"SELECT {DECISION_COLUMNS}, ({reward}) FROM decisions WHERE ns = ? AND id IN ({', '.join('?' * len(wanted))})"
        with self._db.reading() as conn:
            rows = conn.execute(statement, (MAX_ID if before is None else before, *without, self._ns, *wanted)).fetchall()
        return {row[0]: (self._row(DecisionRow, row[:-1]), row[-1]) for row in rows}

    def decisions(self, limit: int | None = None, *, without: Collection[str] = ()) -> Iterator[tuple[DecisionRow, float | None]]:
        """The newest `limit` decisions (None: all), oldest first, each with its last reward that is of none of these sources, or None.

        Reads in pieces: rows that are added or deleted meanwhile may or may not appear, each row at most once.
        """
        if limit is not None:
            check_count("limit", limit)
        return self._decisions(limit, tuple(without))

    def _decisions(self, limit: int | None, without: tuple[str, ...]) -> Iterator[tuple[DecisionRow, float | None]]:
        reward = _LAST_REWARD.format(self._feedback_by_id, "decisions.ns", "decisions.id", MAX_ID, _of_others(without))
        for row in self._oldest_first("decisions", f"{DECISION_COLUMNS}, ({reward})", limit, without):
            yield self._row(DecisionRow, row[:-1]), row[-1]

    def _oldest_first(self, table: str, columns: str, limit: int | None, given: tuple[str, ...] = ()) -> Iterator[tuple[Any, ...]]:
        """The newest `limit` rows of `table`, oldest first, CHUNK at a time by (time, pos); `given` goes into `columns`."""
        time, pos, left = -math.inf, -1, MAX_ID
        if limit is not None:
            left = limit
            with self._db.reading() as conn:
                before = conn.execute(
                    f"SELECT time, pos FROM {table} WHERE ns = ? ORDER BY time DESC, pos DESC LIMIT 1 OFFSET ?", (self._ns, limit)
                ).fetchone()
            if before is not None:
                time, pos = before
        # Two queries because SQLite seeks in (ns, time, pos) by all three only where time is fixed.
        same_time = f"SELECT time, pos, {columns} FROM {table} WHERE ns = ? AND time = ? AND pos > ? ORDER BY pos LIMIT ?"
        later = f"SELECT time, pos, {columns} FROM {table} WHERE ns = ? AND time > ? ORDER BY time, pos LIMIT ?"
        while left > 0:
            most = min(left, namespace.CHUNK)
            with self._db.reading() as conn:
                rows = conn.execute(same_time, (*given, self._ns, time, pos, most)).fetchall()
                if len(rows) < most:
                    rows += conn.execute(later, (*given, self._ns, time, most - len(rows))).fetchall()
            if not rows:
                return
            time, pos = rows[-1][:2]
            left -= len(rows)
            for row in rows:
                yield row[2:]

    def reward(self, id: SupportsIndex, before: int | None = None, *, without: Collection[str] = ()) -> float | None:
        """
        The last reward reported for that id, of those with a number below `before` if given and of none of these sources; None when
        there is none.
        """
        if before is not None:
            check_count("before", before)
        with self._db.reading() as conn:
            row = conn.execute(
                _LAST_REWARD.format(self._feedback_by_id, "?", "?", "?", _of_others(without)),
                (self._ns, id_of(id), MAX_ID if before is None else before, *without),
            ).fetchone()
        return None if row is None else row[0]

    def feedback_after(self, seq: int, limit: int = 1024) -> list[tuple[int, FeedbackRow]]:
        """At most `limit` feedback rows with a number above `seq`, ascending, as (number, row).

        Numbers grow in the order of commits: a reader that goes on from the last number it saw misses nothing.
        """
        check_count("seq", seq)
        check_count("limit", limit)
        with self._db.reading() as conn:
            rows = conn.execute(
                f"SELECT seq, {FEEDBACK_COLUMNS} FROM feedback WHERE ns = ? AND seq > ? ORDER BY seq LIMIT ?", (self._ns, seq, limit)
            ).fetchall()
        return [(row[0], self._row(FeedbackRow, row[1:])) for row in rows]

    def last_seq(self) -> int:
        """The highest feedback number so far, also when its row is gone; 0 before any feedback."""
        with self._db.reading() as conn:
            last: int = conn.execute("SELECT last_seq FROM namespaces WHERE ns = ?", (self._ns,)).fetchone()[0]
        return last

    def trajectory(self, id: SupportsIndex) -> TrajectoryRow | None:
        """The trajectory of that id; None when unknown, pruned or forgotten."""
        with self._db.reading() as conn:
            row = conn.execute(f"SELECT {TRAJECTORY_COLUMNS} FROM trajectories WHERE ns = ? AND id = ?", (self._ns, id_of(id))).fetchone()
        return None if row is None else self._row(TrajectoryRow, row)

    def trajectories(self, limit: int | None = None) -> Iterator[TrajectoryRow]:
        """The newest `limit` trajectories (None: all), oldest first; read in pieces, as `decisions`."""
        if limit is not None:
            check_count("limit", limit)
        return self._trajectories(limit)

    def _trajectories(self, limit: int | None) -> Iterator[TrajectoryRow]:
        for row in self._oldest_first("trajectories", TRAJECTORY_COLUMNS, limit):
            yield self._row(TrajectoryRow, row)

    def decision_times(self) -> list[float]:
        """Time of every decision, ascending."""
        with self._db.reading() as conn:
            return [row[0] for row in conn.execute("SELECT time FROM decisions WHERE ns = ? ORDER BY time", (self._ns,))]

    def sources(self) -> dict[str, tuple[int, float]]:
        """Sources of the feedback that is kept: number of rewards, and the time of the first."""
        with self._db.reading() as conn:
            rows = conn.execute(
                "SELECT source, count(*), min(time) FROM feedback WHERE ns = ? AND source IS NOT NULL GROUP BY source", (self._ns,)
            ).fetchall()
        return {source: (count, first) for source, count, first in sorted(rows)}

    def whole(self) -> bool:
        """Whether every reward that ever came is still here or was deleted by `forget`, `forget_source` or `replace_without`."""
        with self._db.reading() as conn:
            kept, last = conn.execute(
                "SELECT (SELECT count(*) FROM feedback WHERE ns = ?), last_seq FROM namespaces WHERE ns = ?", (self._ns, self._ns)
            ).fetchone()
            return bool(kept + self._counter(conn, "forgotten") == last)

    def count(self) -> int:
        """Decisions in the namespace."""
        with self._db.reading() as conn:
            n: int = conn.execute("SELECT count(*) FROM decisions WHERE ns = ?", (self._ns,)).fetchone()[0]
        return n


def _of_others(sources: Collection[str]) -> str:
    return f" AND (source IS NULL OR source NOT IN ({', '.join('?' * len(sources))}))" if sources else ""
