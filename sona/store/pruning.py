"""What a store deletes, and in which order. Works inside the caller's transaction, on one namespace."""

import itertools
from collections.abc import Iterable, Mapping

from sona.store.namespace import Sql

MIN_ROWS = 16  # rows deleted at least where a size is to be reached: pages free up only when all of their rows are gone
IDS = 500  # in one statement


def delete_ids(conn: Sql, ns: int, ids: Iterable[int]) -> tuple[int, int, int]:
    """Delete decisions with their feedback and trajectories; rows deleted of each kind."""
    deleted = [0, 0, 0]
    rest = iter(ids)
    while some := list(itertools.islice(rest, IDS)):
        listed = ", ".join("?" * len(some))
        for kind, table in enumerate(("decisions", "feedback", "trajectories")):
            deleted[kind] += conn.execute(f"DELETE FROM {table} WHERE ns = ? AND id IN ({listed})", (ns, *some)).rowcount
    return deleted[0], deleted[1], deleted[2]


def delete_vectors(conn: Sql, ns: int, name: str, ids: Iterable[int]) -> None:
    """Delete vectors of the state of that name."""
    rest = iter(ids)
    while some := list(itertools.islice(rest, IDS)):
        conn.execute(f"DELETE FROM vectors WHERE ns = ? AND name = ? AND id IN ({', '.join('?' * len(some))})", (ns, name, *some))


def drop_oldest(conn: Sql, ns: int, excess: int, limit: int, payload: Mapping[str, str]) -> tuple[int, int, int]:
    """Delete the oldest decisions worth about `excess` bytes, at most `limit`, with all that is as old; without decisions, the oldest rest.

    Feedback of decisions that are kept stays. `payload` has SQL for the bytes of a row of each table.
    """
    rows = conn.execute(
        f"SELECT id, time, {payload['decisions']} FROM decisions WHERE ns = ? ORDER BY time, pos LIMIT ?", (ns, limit)
    ).fetchall()
    if rows:
        chosen = _worth(rows, excess)
        decisions, feedback, trajectories = delete_ids(conn, ns, (row[0] for row in chosen))
        cut = chosen[-1][1]
        feedback += conn.execute(
            """DELETE FROM feedback WHERE ns = ? AND time < ?
               AND NOT EXISTS (SELECT 1 FROM decisions WHERE decisions.ns = feedback.ns AND decisions.id = feedback.id)""",
            (ns, cut),
        ).rowcount
        trajectories += conn.execute("DELETE FROM trajectories WHERE ns = ? AND time < ?", (ns, cut)).rowcount
        return decisions, feedback, trajectories
    rows = conn.execute(
        f"SELECT id, time, {payload['trajectories']} FROM trajectories WHERE ns = ? ORDER BY time, pos LIMIT ?", (ns, limit)
    ).fetchall()
    if rows:
        return delete_ids(conn, ns, (row[0] for row in _worth(rows, excess)))
    rows = conn.execute(f"SELECT seq, time, {payload['feedback']} FROM feedback WHERE ns = ? ORDER BY seq LIMIT ?", (ns, limit)).fetchall()
    if rows:
        return 0, conn.execute("DELETE FROM feedback WHERE ns = ? AND seq <= ?", (ns, _worth(rows, excess)[-1][0])).rowcount, 0
    return 0, 0, 0


def _worth(rows: list[tuple[int, float, int]], excess: int) -> list[tuple[int, float, int]]:
    total = 0
    for n, row in enumerate(rows, 1):
        total += row[2]
        if total >= excess and n >= MIN_ROWS:
            return rows[:n]
    return rows


def drop_before(conn: Sql, ns: int, cutoff: float, limit: int) -> tuple[int, int, int]:
    """Delete what is older than `cutoff` (wall clock, s), at most `limit` rows of a kind and the rows that belong to them."""
    ids = conn.execute("SELECT id FROM decisions WHERE ns = ? AND time < ? ORDER BY time LIMIT ?", (ns, cutoff, limit)).fetchall()
    decisions, feedback, trajectories = delete_ids(conn, ns, (row[0] for row in ids))
    feedback += conn.execute(
        """DELETE FROM feedback WHERE ns = ? AND seq IN
           (SELECT seq FROM feedback WHERE ns = ? AND time < ? ORDER BY time LIMIT ?)""",
        (ns, ns, cutoff, limit),
    ).rowcount
    trajectories += conn.execute(
        "DELETE FROM trajectories WHERE pos IN (SELECT pos FROM trajectories WHERE ns = ? AND time < ? ORDER BY time LIMIT ?)",
        (ns, cutoff, limit),
    ).rowcount
    return decisions, feedback, trajectories


def drop_arm_sets(conn: Sql, ns: int, before: float) -> int:
    """Delete arm sets last put before `before` (wall clock, s) that no decision refers to and that are not the current one."""
    return conn.execute(
        """DELETE FROM arms WHERE ns = ? AND time < ? AND version <> (SELECT arm_set FROM namespaces WHERE namespaces.ns = arms.ns)
           AND NOT EXISTS (SELECT 1 FROM decisions WHERE decisions.ns = arms.ns AND decisions.arm_set = arms.version)""",
        (ns, before),
    ).rowcount
