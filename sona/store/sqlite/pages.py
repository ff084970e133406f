"""Pages of a SQLite file: how many a namespace has, and how unused ones go back to the file system."""

import sqlite3


def live_bytes(conn: sqlite3.Connection, ns: int) -> int:
    """Bytes of the file's used pages, shared among the namespaces by their payload."""
    page_bytes = conn.execute("PRAGMA page_size").fetchone()[0]
    pages = conn.execute("PRAGMA page_count").fetchone()[0] - conn.execute("PRAGMA freelist_count").fetchone()[0]
    own, total = conn.execute("SELECT sum(bytes * (ns = ?)), sum(bytes) FROM namespaces", (ns,)).fetchone()
    return int(page_bytes * pages * (own / total if total else 1.0))


def free_pages(conn: sqlite3.Connection, most: int) -> None:
    """Give pages back to the file system (at most `most`) when more than a quarter of the file is unused; a tenth is kept for new rows.

    Not to be called inside a transaction.
    """
    pages = conn.execute("PRAGMA page_count").fetchone()[0]
    unused = conn.execute("PRAGMA freelist_count").fetchone()[0]
    if unused > pages // 4:
        # One step of this statement frees one page, and execute() makes one step because there are no rows to fetch.
        conn.executescript(f"PRAGMA incremental_vacuum({min(unused - pages // 10, most)})")
