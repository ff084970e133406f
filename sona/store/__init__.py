"""Durable storage: rows and state in SQLite or PostgreSQL, snapshots of arrays in a directory."""

from typing import TYPE_CHECKING, Any

from sona.store.open import open_store
from sona.store.protocol import Store
from sona.store.rows import DecisionRow, FeedbackRow, PruneReport, TrajectoryRow, VersionRow
from sona.store.snapshot import check_snapshot, load_snapshot, save_snapshot
from sona.store.sqlite import SqliteStore
from sona.store.writer import GroupWriter

if TYPE_CHECKING:
    from sona.store.postgres import PostgresStore as PostgresStore  # not in __all__: it needs an extra

__all__ = [
    "DecisionRow",
    "FeedbackRow",
    "GroupWriter",
    "PruneReport",
    "SqliteStore",
    "Store",
    "TrajectoryRow",
    "VersionRow",
    "check_snapshot",
    "load_snapshot",
    "open_store",
    "save_snapshot",
]


def __getattr__(name: str) -> Any:
    if name == "PostgresStore":  # looked up on first use: it needs an extra
        from sona.store.postgres import PostgresStore

        return PostgresStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
