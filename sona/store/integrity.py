"""What can be wrong with a database and one of its namespaces."""

import zlib
from collections.abc import Iterator
from typing import Any

from sona.errors import SonaCorruptError, SonaStoreError, SonaTypeError, SonaValueError
from sona.store import namespace
from sona.store.checksums import arms_digest, state_digest, version_digest
from sona.store.namespace import Namespace, Sql
from sona.store.rows import DECISION_COLUMNS, FEEDBACK_COLUMNS, TRAJECTORY_COLUMNS, DecisionRow, FeedbackRow, TrajectoryRow


class Integrity(Namespace):
    """The method of a store that reads everything."""

    def integrity(self) -> list[str]:
        """What is wrong with the database or this namespace, one sentence each; empty when all is sound. Reads everything."""
        found: list[str] = []
        try:
            with self._db.reading() as conn:
                found.extend(self._database_findings(conn))
                for what, part in (
                    ("states", self._state_findings),
                    ("vectors", self._vector_findings),
                    ("arms", self._arm_findings),
                    ("versions", self._version_findings),
                    ("books", self._book_findings),
                    ("rows", self._row_findings),
                ):
                    try:
                        found.extend(part(conn))
                    except (TypeError, ValueError, KeyError, IndexError, OverflowError) as exc:  # an index that leads to no row
                        found.append(f"{what}: cannot be read: {exc!r:.200}")
        except (SonaCorruptError, SonaStoreError) as exc:
            found.append(f"unreadable: {exc}")
        return found

    def _database_findings(self, conn: Any) -> Iterator[str]:
        """What is wrong with the database as such."""
        raise NotImplementedError

    def _state_findings(self, conn: Sql) -> Iterator[str]:
        # One blob in memory at a time.
        for pos, name, generation in conn.execute("SELECT pos, name, generation FROM state WHERE ns = ?", (self._ns,)).fetchall():
            seq, digest, blob = conn.execute("SELECT applied_seq, sha256, blob FROM state WHERE pos = ?", (pos,)).fetchone()
            if digest != state_digest(seq, blob):
                yield f"state {name!r}, generation {generation}: does not match its checksum"

    def _vector_findings(self, conn: Sql) -> Iterator[str]:
        for (name,) in conn.execute("SELECT DISTINCT name FROM vectors WHERE ns = ?", (self._ns,)).fetchall():
            last = -1
            while rows := self._vectors_after(conn, name, last):
                last = rows[-1][0]
                for id, crc, vector in rows:
                    if crc != zlib.crc32(vector):
                        yield f"vector {id} of {name!r}: does not match its checksum"

    def _arm_findings(self, conn: Sql) -> Iterator[str]:
        for pos, version in conn.execute("SELECT pos, version FROM arms WHERE ns = ?", (self._ns,)).fetchall():
            digest, *content = conn.execute("SELECT sha256, names, vectors, costs FROM arms WHERE pos = ?", (pos,)).fetchone()
            if digest != arms_digest(*content):
                yield f"arm set {version}: does not match its checksum"

    def _version_findings(self, conn: Sql) -> Iterator[str]:
        for pos, name, number in conn.execute("SELECT pos, name, number FROM versions WHERE ns = ?", (self._ns,)).fetchall():
            digest, *content = conn.execute(
                "SELECT sha256, name, number, parent, time, verdict, reason, about, factors FROM versions WHERE pos = ?", (pos,)
            ).fetchone()
            if digest != version_digest(*content):
                yield f"version {number} of {name!r}: does not match its checksum"

    def _book_findings(self, conn: Sql) -> Iterator[str]:
        last, booked = conn.execute("SELECT last_seq, bytes FROM namespaces WHERE ns = ?", (self._ns,)).fetchone()
        counted = sum(
            conn.execute(f"SELECT coalesce(sum({cost}), 0) FROM {table} WHERE ns = ?", (self._ns,)).fetchone()[0]
            for table, cost in self._payload().items()
        )
        if counted != booked:
            yield f"size: expected {counted} bytes of payload, the books say {booked}"
        highest = conn.execute("SELECT coalesce(max(seq), 0) FROM feedback WHERE ns = ?", (self._ns,)).fetchone()[0]
        if highest > last:
            yield f"feedback: expected numbers up to {last}, got {highest}"

    def _row_findings(self, conn: Sql) -> Iterator[str]:
        kinds: tuple[tuple[str, str, type[DecisionRow | FeedbackRow | TrajectoryRow], str], ...] = (
            ("decisions", "pos", DecisionRow, DECISION_COLUMNS),
            ("feedback", "seq", FeedbackRow, FEEDBACK_COLUMNS),
            ("trajectories", "pos", TrajectoryRow, TRAJECTORY_COLUMNS),
        )
        for table, key, kind, columns in kinds:
            page, last = f"SELECT {key}, {columns} FROM {table} WHERE ns = ? AND {key} > ? ORDER BY {key} LIMIT ?", -1
            while rows := conn.execute(page, (self._ns, last, namespace.CHUNK)).fetchall():
                last = rows[-1][0]
                for _, *values in rows:
                    try:
                        kind(*values)
                    except (SonaTypeError, SonaValueError) as exc:
                        yield f"{table}, id {values[0]!r}: {exc}"
