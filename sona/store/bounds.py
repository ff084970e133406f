"""What a namespace forgets: what its user names, and what is too old or too much."""

import logging
import math
from collections.abc import Collection
from typing import SupportsIndex

from sona.errors import SonaError, SonaTypeError
from sona.store import pruning
from sona.store.arguments import check_count, check_name, id_of
from sona.store.checksums import state_digest
from sona.store.namespace import Namespace, Sql
from sona.store.rows import Blob, PruneReport

log = logging.getLogger(__name__)

PRUNE_TO = 0.9  # of max_bytes, so that not every append prunes
RETENTION_EVERY = 3600.0  # s between looks at retention_days
ARM_SET_GRACE = 86400.0  # s that an unused arm set stays: a decision that names it may still be on its way from another process
PRUNE_ROWS = 2048  # rows deleted per transaction, so that no writer waits long
VACUUM_PAGES = 4096


class Bounds(Namespace):
    """
    The methods of a store that delete.

    Attributes
    ----------
    max_bytes, retention_days
        As they were given to the store.
    pruned_decisions : int
        By this object, explicit and automatic.
    prune_failures : int
        Automatic pruning that could not write; tried again at the next append.
    """

    max_bytes: int | None
    retention_days: float | None
    pruned_decisions = 0
    prune_failures = 0
    _next_retention = -math.inf

    # -- forgetting ------------------------------------------------------------------------------------------------

    def forget(self, id: SupportsIndex) -> int:
        """Delete a decision, its feedback and trajectory, and scrub their bytes as `scrub_log` does.

        What was learned from it stays in the adapter state.

        Returns
        -------
        int
            Rows deleted.

        Raises
        ------
        SonaStoreError
            The write failed, or a reader in another process kept the log in use: the rows are deleted then, but the log
            may still hold their bytes; call again.
        """
        with self._db.writing() as conn:
            decisions, feedback, trajectories = pruning.delete_ids(conn, self._ns, (id_of(id),))
            self._count_up(conn, "forgotten", feedback)
        self.scrub_log()
        return decisions + feedback + trajectories

    def forget_source(self, source: str) -> int:
        """Delete every decision of that source with its feedback and trajectory, and all feedback the source gave; as `forget`."""
        if not isinstance(source, str):
            raise SonaTypeError(f"expected source to be a str, got {type(source).__name__}")
        with self._db.writing() as conn:
            gone = sum(self._delete_source(conn, source))
        self.scrub_log()
        return gone

    def _delete_source(self, conn: Sql, source: str) -> tuple[int, int, int]:
        """Decisions, feedback and trajectories deleted."""
        ids = conn.execute("SELECT id FROM decisions WHERE ns = ? AND source = ?", (self._ns, source)).fetchall()
        decisions, feedback, trajectories = pruning.delete_ids(conn, self._ns, (row[0] for row in ids))
        feedback += conn.execute("DELETE FROM feedback WHERE ns = ? AND source = ?", (self._ns, source)).rowcount
        self._count_up(conn, "forgotten", feedback)
        return decisions, feedback, trajectories

    def replace_without(
        self,
        source: str,
        name: str,
        blob: Blob,
        applied_seq: int,
        *,
        versions_since: float,
        keep: Collection[str] = (),
        term: int | None = None,
    ) -> tuple[int, int] | None:
        """
        Delete a source as `forget_source` does, together with every state and the versions that may hold what it taught, and keep `blob`,
        learned without it from the feedback up to number `applied_seq`; all of it in one transaction, or nothing.

        Feedback numbers go up by one, so that readers of states see that there is a newer one. Call `scrub_log` afterwards.

        Parameters
        ----------
        versions_since : float
            Versions of that name from this time on (wall clock, s) are deleted; their numbers are not given out again.
        keep : collection of str
            Names of states that stay.

        Returns
        -------
        (int, int) or None
            Rewards and versions deleted; None, and nothing has changed, when there is feedback with a number above `applied_seq`.

        Raises
        ------
        SonaStoreError
            Another store holds the lease, or may have held it since `term` where that is given, or the write failed; nothing has changed.
        """
        check_name("state name", name)
        check_count("applied_seq", applied_seq)
        ns = self._ns
        with self._leading(term) as conn:
            if conn.execute("SELECT last_seq FROM namespaces WHERE ns = ?", (ns,)).fetchone()[0] != applied_seq:
                return None
            _, feedback, _ = self._delete_source(conn, source)
            conn.execute("UPDATE namespaces SET last_seq = last_seq + 1 WHERE ns = ?", (ns,))
            self._count_up(conn, "forgotten", 1)
            newest = conn.execute("SELECT max(number) FROM versions WHERE ns = ? AND name = ?", (ns, name)).fetchone()[0] or 0
            self._count_up(conn, f"versions:{name}", max(newest - self._counter(conn, f"versions:{name}"), 0))
            versions = conn.execute("DELETE FROM versions WHERE ns = ? AND name = ? AND time >= ?", (ns, name, versions_since)).rowcount
            generation = conn.execute("SELECT max(generation) FROM state WHERE ns = ? AND name = ?", (ns, name)).fetchone()[0] or 0
            others = f" AND name NOT IN ({', '.join('?' * len(keep))})" if keep else ""
            for table in ("state", "vectors"):
                conn.execute(f"DELETE FROM {table} WHERE ns = ?{others}", (ns, *keep))
            conn.execute(
                "INSERT INTO state (ns, name, generation, applied_seq, sha256, blob) VALUES (?, ?, ?, ?, ?, ?)",
                (ns, name, generation + 1, applied_seq + 1, state_digest(applied_seq + 1, blob), blob),
            )
            self._changed(conn)
        return feedback, versions

    # -- bounds ----------------------------------------------------------------------------------------------------

    def bytes(self) -> int:
        """What `max_bytes` bounds; see the class."""
        with self._db.reading() as conn:
            return self._live_bytes(conn)

    def prune(self) -> PruneReport:
        """Enforce `retention_days` and `max_bytes`, oldest decisions first, and give unused space back to the file system.

        `append` does the same in small steps. Adapter state, versions and the current arm set are never pruned, so
        ``bytes_after`` may stay above a `max_bytes` smaller than those.
        """
        before = self.bytes()
        total = [0, 0, 0]
        while self._prune_step(PRUNE_ROWS, total, target=self.max_bytes):
            pass
        with self._db.writing() as conn:
            arm_sets = pruning.drop_arm_sets(conn, self._ns, self._clock() - ARM_SET_GRACE)
        with self._db.reading() as conn:
            self._give_back(conn, 2**31 - 1)
        return PruneReport(total[0], total[1], total[2], arm_sets, before, self.bytes())

    def _prune_step(self, rows: int, total: list[int], *, target: float | None, retention: bool = True) -> bool:
        """One short transaction of pruning; adds the rows deleted to `total`, True when there may be more to do."""
        deleted = (0, 0, 0)
        with self._db.writing() as conn:
            if retention and self.retention_days is not None:
                deleted = pruning.drop_before(conn, self._ns, self._clock() - self.retention_days * 86400.0, rows)
            if not any(deleted) and target is not None:
                excess = self._live_bytes(conn) - target
                if excess > 0:
                    deleted = pruning.drop_oldest(conn, self._ns, int(excess), rows, self._payload())
        for kind, n in enumerate(deleted):
            total[kind] += n
        self.pruned_decisions += deleted[0]
        return any(deleted)

    def _prune_when_due(self, appended: int) -> None:
        """Keeps up with `appended` new rows; never fails the append that is durable already."""
        try:
            now = self._clock()
            retention = self.retention_days is not None and not self._next_retention - RETENTION_EVERY <= now < self._next_retention
            full = self.max_bytes is not None and self.bytes() > self.max_bytes
            if not retention and not full:
                return
            target = self.max_bytes * PRUNE_TO if self.max_bytes is not None and full else None
            more = self._prune_step(max(PRUNE_ROWS, 2 * appended), [0, 0, 0], target=target, retention=retention)
            if retention and not more:
                self._next_retention = now + RETENTION_EVERY
            if more:
                with self._db.writing() as conn:
                    pruning.drop_arm_sets(conn, self._ns, now - ARM_SET_GRACE)
                with self._db.reading() as conn:
                    self._give_back(conn, VACUUM_PAGES)
        except SonaError as exc:
            self.prune_failures += 1
            log.warning(
                "%s: pruning failed, to be tried again at the next append: %s",
                self.path,
                exc,
                extra={"event": "store.not_pruned", "error": str(exc)},
            )
