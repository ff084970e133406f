"""What someone who looks at a store in use asks for: numbers that tell of a change, rewards in a few buckets, and a wish for its leader."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from sona.store.arguments import check_count, check_name
from sona.store.namespace import Namespace

PIECE = 10_000  # feedback numbers read at a time


class RewardBucket(NamedTuple):
    """Rewards in a row: how many, their sum and sum of squares, and the wall clock (s) of the first and the last."""

    rewards: int
    total: float
    squares: float
    first: float
    last: float


class Outcome(NamedTuple):
    """
    A reward that counts, beside its decision: times in s since the epoch, arm as its row number in the arm set, proposals as in
    `DecisionRow`.
    """

    time: float
    decided: float
    reward: float
    arm: int
    arm_set: int
    propensity: float
    proposals: bytes


class Overview(Namespace):
    """The methods of a store for who looks on: none needs the learning lease."""

    def marks(self) -> dict[str, int]:
        """
        Numbers by name, of which one is another when something was written: "decisions", "trajectories", "rewards", "versions",
        "state NAME" and "served NAME" for each state and published version, "publish NAME" where one is asked for. Cheap, however large the
        store is.
        """
        with self._db.reading() as conn:
            row = conn.execute(
                "SELECT last_seq, (SELECT max(pos) FROM decisions), (SELECT max(pos) FROM trajectories), (SELECT max(pos) FROM versions)"
                " FROM namespaces WHERE ns = ?",
                (self._ns,),
            ).fetchone()
            states = conn.execute("SELECT name, max(generation) FROM state WHERE ns = ? GROUP BY name", (self._ns,)).fetchall()
            served = conn.execute("SELECT name, number FROM versions WHERE ns = ? AND published", (self._ns,)).fetchall()
            wishes = conn.execute("SELECT name, value FROM counters WHERE name LIKE ?", (f"publish:%:{self._ns}",)).fetchall()
        result = {"rewards": row[0] or 0, "decisions": row[1] or 0, "trajectories": row[2] or 0, "versions": row[3] or 0}
        result |= {f"state {name}": generation for name, generation in states}
        result |= {f"served {name}": number for name, number in served}
        return result | {f"publish {name.split(':')[1]}": value for name, value in wishes}

    def reward_series(self, newest: int, buckets: int) -> list[RewardBucket]:
        """
        The newest `newest` rewards in at most so many buckets, oldest first; of a decision with several the last counts.

        Parameters
        ----------
        newest, buckets : int
            At least 1.
        """
        first, last = self._newest(newest)
        check_count("buckets", buckets)
        width = max(-(-(last - first + 1) // max(buckets, 1)), 1)
        with self._db.reading() as conn:
            rows = conn.execute(
                f"SELECT count(*), sum(f.reward), sum(f.reward * f.reward), min(f.time), max(f.time) FROM feedback AS f"
                f" WHERE f.ns = ? AND f.seq >= ? AND {self._counts()}"
                f" GROUP BY (f.seq - {first}) / {width} ORDER BY (f.seq - {first}) / {width}",
                (self._ns, first),
            ).fetchall()
        return [RewardBucket(int(rewards), *map(float, rest)) for rewards, *rest in rows]

    def outcomes(self, newest: int) -> Iterator[Outcome]:
        """
        The newest `newest` rewards that count, oldest first, each beside its decision; those of what is no decision are left out.

        Reads in pieces: rows that are added or deleted meanwhile may or may not appear.
        """
        first, last = self._newest(newest)
        for start in range(first, last + 1, PIECE):
            with self._db.reading() as conn:
                rows: list[Any] = conn.execute(
                    "SELECT f.time, d.time, f.reward, d.arm, d.arm_set, d.propensity, d.proposals"
                    " FROM feedback AS f JOIN decisions AS d ON d.ns = f.ns AND d.id = f.id"
                    f" WHERE f.ns = ? AND f.seq >= ? AND f.seq < ? AND {self._counts()} ORDER BY f.seq",
                    (self._ns, start, start + PIECE),
                ).fetchall()
            yield from map(Outcome._make, rows)

    def qualities(self, newest: int) -> list[tuple[float, float]]:
        """(time, quality) of the newest `newest` trajectories that have one, oldest first."""
        check_count("newest", newest)
        with self._db.reading() as conn:
            rows: list[Any] = conn.execute(
                "SELECT time, quality FROM trajectories WHERE ns = ? AND quality IS NOT NULL ORDER BY time DESC, pos DESC LIMIT ?",
                (self._ns, newest),
            ).fetchall()
        return [tuple(row) for row in reversed(rows)]

    def _newest(self, newest: int) -> tuple[int, int]:
        """Numbers of the first and the last of so many rewards."""
        check_count("newest", newest)
        with self._db.reading() as conn:
            last: int = conn.execute("SELECT last_seq FROM namespaces WHERE ns = ?", (self._ns,)).fetchone()[0]
        return max(last - newest, 0) + 1, last

    def _counts(self) -> str:
        """SQL: no later reward of the same id."""
        return f"NOT EXISTS (SELECT 1 FROM {self._feedback_by_id_as('l')} WHERE l.ns = f.ns AND l.id = f.id AND l.seq > f.seq)"

    def _feedback_by_id_as(self, alias: str) -> str:
        """Table of the rewards, to be read by id, under another name."""
        table, _, hint = self._feedback_by_id.partition(" ")
        return f"{table} AS {alias} {hint}"

    # -- a wish for the process that leads -------------------------------------------------------------------------

    def ask_publish(self, name: str, number: int) -> None:
        """
        Ask whoever holds the learning lease to serve that version of the name; the last one asked for counts. Durable on return.

        The wish ends with the `put_state` that publishes the version, or with `refuse_publish`.
        """
        check_name("state name", name)
        check_count("number", number)
        with self._db.writing() as conn:
            conn.execute(
                "INSERT INTO counters (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                (self._wish(name), number),
            )
            self._changed(conn)

    def asked(self, name: str) -> int | None:
        """Number of the version that somebody wants to be served; negative when that was refused, None when nobody asked."""
        with self._db.reading() as conn:
            row = conn.execute("SELECT value FROM counters WHERE name = ?", (self._wish(name),)).fetchone()
        return None if row is None else row[0]

    def refuse_publish(self, name: str, number: int) -> None:
        """Say that this version cannot be served; nothing happens when another one is asked for by now."""
        with self._db.writing() as conn:
            conn.execute("UPDATE counters SET value = ? WHERE name = ? AND value = ?", (-number, self._wish(name), number))

    def _granted(self, conn: Any, name: str, number: int) -> None:
        """That version is served: nobody waits for it any more, nor looks at an older refusal."""
        conn.execute("DELETE FROM counters WHERE name = ? AND (value = ? OR value < 0)", (self._wish(name), number))

    def _wish(self, name: str) -> str:
        """Name of a counter: the number of the version, negative once it was refused."""
        return f"publish:{name}:{self._ns}"
