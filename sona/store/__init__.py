"""Durable storage: rows and state in SQLite, snapshots of arrays in a directory."""

from sona.store.rows import DecisionRow, FeedbackRow, PruneReport, TrajectoryRow, VersionRow
from sona.store.snapshot import load_snapshot, save_snapshot
from sona.store.sqlite import SqliteStore
from sona.store.writer import GroupWriter

__all__ = [
    "DecisionRow",
    "FeedbackRow",
    "GroupWriter",
    "PruneReport",
    "SqliteStore",
    "TrajectoryRow",
    "VersionRow",
    "load_snapshot",
    "save_snapshot",
]
