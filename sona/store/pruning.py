"""What a store deletes, and in which order. Works inside the caller's transaction, on one namespace."""

import sqlite3
from collections.abc import Iterable

from sona.store.schema import payload_sql

PAYLOAD = payload_sql()
MIN_ROWS = 16  # rows deleted at least where a size is to be reached: pages free up only when all of their rows are gone


def live_bytes(conn: sqlite3.Connection, ns: int) -> int:
    """Bytes of the file's used pages, shared among the namespaces by their payload."""
    page_bytes = conn.execute("PRAGMA page_size").fetchone()[0]
    pages = conn.execute("PRAGMA page_count").fetchone()[0] - conn.execute("PRAGMA freelist_count").fetchone()[0]
    own, total = conn.execute("SELECT sum(bytes * (ns = ?)), sum(bytes) FROM namespaces", (ns,)).fetchone()
    return int(page_bytes * pages * (own / total if total else 1.0))


def delete_ids(conn: sqlite3.Connection, ns: int, ids: Iterable[int]) -> tuple[int, int, int]:
    """Delete decisions with their feedback and trajectories; rows deleted of each kind."""
    keys = [(ns, one) for one in ids]
    decisions = conn.executemany("DELETE FROM decisions WHERE ns = ? AND id = ?", keys).rowcount
    feedback = conn.executemany("DELETE FROM feedback WHERE ns = ? AND id = ?", keys).rowcount
    trajectories = conn.executemany("DELETE FROM trajectories WHERE ns = ? AND id = ?", keys).rowcount
    return max(decisions, 0), max(feedback, 0), max(trajectories, 0)  # -1 where there were no keys


def drop_oldest(conn: sqlite3.Connection, ns: int, excess: int, limit: int) -> tuple[int, int, int]:
    """Delete the oldest decisions worth about `excess` bytes, at most `limit`, with all that is as old; without decisions, the oldest rest.

    Feedback of decisions that are kept stays.
    """
    rows = conn.execute(
        f"SELECT id, time, {PAYLOAD['decisions']} FROM decisions WHERE ns = ? ORDER BY time, pos LIMIT ?", (ns, limit)
    ).fetchall()
    if rows:
        chosen = _worth(rows, excess)
        decisions, feedback, trajectories = delete_ids(conn, ns, (row[0] for row in chosen))
        cut = chosen[-1][1]
        feedback += conn.execute(
            """DELETE FROM feedback WHERE ns = ?1 AND time < ?2
               AND NOT EXISTS (SELECT 1 FROM decisions WHERE decisions.ns = ?1 AND decisions.id = feedback.id)""",
            (ns, cut),
        ).rowcount
        trajectories += conn.execute("DELETE FROM trajectories WHERE ns = ? AND time < ?", (ns, cut)).rowcount
        return decisions, feedback, trajectories
    rows = conn.execute(
        f"SELECT id, time, {PAYLOAD['trajectories']} FROM trajectories WHERE ns = ? ORDER BY time, pos LIMIT ?", (ns, limit)
    ).fetchall()
    if rows:
        return delete_ids(conn, ns, (row[0] for row in _worth(rows, excess)))
    rows = conn.execute(f"SELECT seq, time, {PAYLOAD['feedback']} FROM feedback WHERE ns = ? ORDER BY seq LIMIT ?", (ns, limit)).fetchall()
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


def drop_before(conn: sqlite3.Connection, ns: int, cutoff: float, limit: int) -> tuple[int, int, int]:
    """Delete what is older than `cutoff` (wall clock, s), at most `limit` rows of a kind and the rows that belong to them."""
    ids = conn.execute("SELECT id FROM decisions WHERE ns = ? AND time < ? ORDER BY time LIMIT ?", (ns, cutoff, limit)).fetchall()
    decisions, feedback, trajectories = delete_ids(conn, ns, (row[0] for row in ids))
    feedback += conn.execute(
        """DELETE FROM feedback WHERE ns = ?1 AND seq IN
           (SELECT seq FROM feedback WHERE ns = ?1 AND time < ?2 ORDER BY time LIMIT ?3)""",
        (ns, cutoff, limit),
    ).rowcount
    trajectories += conn.execute(
        "DELETE FROM trajectories WHERE pos IN (SELECT pos FROM trajectories WHERE ns = ? AND time < ? ORDER BY time LIMIT ?)",
        (ns, cutoff, limit),
    ).rowcount
    return decisions, feedback, trajectories


def drop_arm_sets(conn: sqlite3.Connection, ns: int, before: float) -> int:
    """Delete arm sets last put before `before` (wall clock, s) that no decision refers to and that are not the current one."""
    return conn.execute(
        """DELETE FROM arms WHERE ns = ?1 AND time < ?2 AND version <> (SELECT arm_set FROM namespaces WHERE ns = ?1)
           AND NOT EXISTS (SELECT 1 FROM decisions WHERE decisions.ns = ?1 AND decisions.arm_set = arms.version)""",
        (ns, before),
    ).rowcount


def free_pages(conn: sqlite3.Connection, most: int) -> None:
    """Give pages back to the file system (at most `most`) when more than a quarter of the file is unused; a tenth is kept for new rows.

    Not to be called inside a transaction.
    """
    pages = conn.execute("PRAGMA page_count").fetchone()[0]
    unused = conn.execute("PRAGMA freelist_count").fetchone()[0]
    if unused > pages // 4:
        # One step of this statement frees one page, and execute() makes one step because there are no rows to fetch.
        conn.executescript(f"PRAGMA incremental_vacuum({min(unused - pages // 10, most)})")
