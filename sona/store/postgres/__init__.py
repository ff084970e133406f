"""The store in a schema of a PostgreSQL database."""

import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

try:
    from psycopg import sql
except ImportError as _missing:
    from sona.errors import MissingExtraError

    raise MissingExtraError(f"a store on PostgreSQL needs psycopg: pip install 'sona[postgres]' ({_missing})") from _missing

import numpy as np

from sona._arrays import Floats
from sona.errors import SonaCorruptError, SonaStoreError, SonaValueError, SonaVersionError
from sona.store import namespace as parts
from sona.store.arguments import check_bounds, check_milliseconds, check_name
from sona.store.bounds import Bounds
from sona.store.integrity import Integrity
from sona.store.outcomes import LeaseLost, UnknownOutcome
from sona.store.overview import Overview
from sona.store.postgres import schema as tables
from sona.store.postgres.connection import Connection, Link
from sona.store.postgres.lease import Lease, channel
from sona.store.postgres.url import Place
from sona.store.records import Records
from sona.store.rows import MAX_ID, Blob, DecisionRow, FeedbackRow, TrajectoryRow
from sona.store.states import States
from sona.store.vectors import Some, Vectors

__all__ = ["PostgresStore", "namespaces", "without_password"]

MAX_DIM = 16_000  # of pgvector's type
MAX_INDEXED = 2000  # of its index
MAX_EF = 1000  # that an index looks at
MARGIN = 8  # more than asked for, because pgvector compares in single precision
_DECISIONS = {
    "ns": "int4",
    "id": "int8",
    "time": "float8",
    "x": "bytea",
    "arm": "int8",
    "arm_set": "int8",
    "candidates": "bytea",
    "propensity": "float8",
    "proposals": "bytea",
    "source": "text",
}
_FEEDBACK = {"ns": "int4", "seq": "int8", "id": "int8", "reward": "float8", "time": "float8", "source": "text"}
_TRAJECTORIES = {"ns": "int4", "id": "int8", "time": "float8", "payload": "bytea", "quality": "float8"}
_VECTORS = {"ns": "int4", "name": "text", "id": "int8", "crc": "int8", "size": "int4", "vector": "bytea"}

Group = tuple[list[DecisionRow], list[FeedbackRow], list[TrajectoryRow]]


class PostgresStore(Records, States, Vectors, Overview, Bounds, Integrity):
    """One namespace of a store on a PostgreSQL server, for processes on any number of machines.

    The same as `SqliteStore`, but for this: a server, and the way to it, may come and go. A call that meets neither raises SonaStoreError
    and changes nothing; later calls connect again, at growing intervals of at most 5 s, and fail at once in between. The learning lease
    belongs to a session of its own, and is lost with it.

    Parameters
    ----------
    url : str
        ``postgresql://user:password@host:port/database``, with options of libpq and ``schema=`` after a ``?``. The password is shown
        nowhere.
    schema : str, optional
        Where the tables are, made when absent; by default that of the URL, or "sona".
    namespace : str, optional
        Letters, digits, ``.``, ``_`` and ``-``, at most 64, the first a letter or digit.
    max_bytes : int, optional
        Bound on what the rows and states of the namespace hold, as `bytes` counts it, at least 2**20; the oldest decisions go first.
        None: no bound.
    retention_days : float, optional
        Rows older than this are deleted. None: kept for ever.
    statement_timeout_ms : int, optional
        How long the server may take for a statement, from 1 on. A server that is silent 5 s longer has its connection cut.
    clock : callable, optional
        Wall clock in seconds, for `retention_days`.

    Attributes
    ----------
    pgvector : bool
        Whether vectors are kept as pgvector's type.

    Raises
    ------
    SonaValueError, SonaTypeError
        An unusable argument.
    SonaStoreError
        The server cannot be reached, refuses, or is older than PostgreSQL 13.
    SonaCorruptError
        The schema has other tables than sona's.
    SonaVersionError
        A newer sona wrote it.
    """

    def __init__(
        self,
        url: str,
        *,
        schema: str | None = None,
        namespace: str = "default",
        max_bytes: int | None = None,
        retention_days: float | None = None,
        statement_timeout_ms: int = 10_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.namespace = check_name("namespace", namespace)
        check_bounds(max_bytes, retention_days)
        check_milliseconds("statement_timeout_ms", statement_timeout_ms)
        if statement_timeout_ms < 1:
            raise SonaValueError(f"expected statement_timeout_ms to be at least 1, got {statement_timeout_ms}")
        self.max_bytes = max_bytes
        self.retention_days = retention_days
        self._clock = clock
        self._place = Place.of(url, schema)
        self.path = self._place.shown
        self._doubt: tuple[int, Group, int] | None = None  # mark, rows and last number of a group that may be there
        self._last = 0
        self._db: Connection = Connection(self._place, statement_timeout_ms=statement_timeout_ms)
        try:
            self._ns = self._namespace_key()
            self._db.ns = self._ns
            with self._db.reading() as link:
                self.pgvector = link.has_vectors
        except BaseException:
            self._db.close()
            raise
        self._lease = Lease(self._place, namespace, statement_timeout_ms=statement_timeout_ms, own=self._db)

    def close(self) -> None:
        """Give back the lease and the connections; a second call does nothing. Waits for a call that is under way."""
        try:
            self._lease.close()
        finally:
            self._db.close()

    # -- the lease -------------------------------------------------------------------------------------------------

    @property
    def lease(self) -> bool:
        """True while this store holds the learning lease of its namespace, as far as it knows; `keep_lease` asks the server."""
        return not self.closed and self._lease.held

    @property
    def term(self) -> int:
        """
        Of the lease that this store took last: another number once somebody else may have held it in between; 0 before the first.

        It is that of the first of the takings that nobody else's came between; the server counts them all.
        """
        return self._lease.term

    def try_lease(self) -> bool:
        """Take the learning lease if nobody else holds it; True when held afterwards, under another `term` where it had been lost.

        The server frees it when the connection ends. Appending needs no lease, `put_state`, `put_version` and `replace_without` do; after
        a loss they raise until this was called.
        """
        with self._db.reading():
            pass
        return self._lease.acquire()

    def keep_lease(self) -> bool:
        """Whether the lease that was taken is still held; asks the server."""
        return self._lease.check()

    def release_lease(self) -> None:
        """Give the learning lease back."""
        with self._db.reading():
            pass
        self._lease.release()

    def watch(self, changed: Callable[[], object] | None) -> bool:
        """
        True: `changed` is called from now on, from another thread, whenever another process has written a state or version, and when the
        lease was lost or the server came back. None: no more.
        """
        if changed is not None:
            with self._db.reading():
                pass
        self._lease.watch(changed)
        return True

    @contextmanager
    def _leading(self, term: int | None) -> Iterator[Link]:
        fence, held = self._lease.fence()
        if fence is None:
            raise self._taken()
        if term is not None and term != held:
            raise self._lost(term)
        try:
            with self._db.writing(fence=fence) as link:
                yield link
        except LeaseLost:
            self._lease.lose()
            raise

    def _changed(self, conn: Link) -> None:
        conn.execute("SELECT pg_notify(?, '')", (channel(self._place, self.namespace),))

    # -- rows ------------------------------------------------------------------------------------------------------

    def _append(self, decisions: list[DecisionRow], feedback: list[FeedbackRow], trajectories: list[TrajectoryRow]) -> int:
        group = decisions, feedback, trajectories
        if self._doubt is not None:
            mark, doubted, last = self._doubt
            if doubted == group:
                done = self._db.committed(mark)
                self._doubt = None
                if done:
                    return last if feedback else self.last_seq()
            self._doubt = None
        try:
            return super()._append(*group)
        except UnknownOutcome as unknown:
            self._doubt = unknown.mark, group, self._last
            raise

    def _insert_decisions(self, conn: Link, rows: list[DecisionRow]) -> None:
        new = {d.id: d for d in reversed(rows)}  # of several the first
        for (known,) in conn.execute("SELECT id FROM decisions WHERE ns = ? AND id = ANY(?)", (self._ns, list(new))).fetchall():
            del new[known]
        ns = self._ns
        conn.copy(
            "decisions",
            _DECISIONS,
            (
                (ns, d.id, float(d.time), d.x, d.arm, d.arm_set, d.candidates, float(d.propensity), d.proposals, d.source)
                for d in reversed(new.values())
            ),
        )

    def _insert_feedback(self, conn: Link, first: int, rows: list[FeedbackRow]) -> None:
        self._last = first + len(rows) - 1
        ns = self._ns
        conn.copy("feedback", _FEEDBACK, ((ns, seq, f.id, float(f.reward), float(f.time), f.source) for seq, f in enumerate(rows, first)))

    def _upsert_trajectories(self, conn: Link, rows: list[TrajectoryRow]) -> None:
        new = {t.id: t for t in rows}
        conn.execute("DELETE FROM trajectories WHERE ns = ? AND id = ANY(?)", (self._ns, list(new)))
        ns = self._ns
        conn.copy(
            "trajectories",
            _TRAJECTORIES,
            ((ns, t.id, float(t.time), t.payload, None if t.quality is None else float(t.quality)) for t in new.values()),
        )

    # -- vectors ---------------------------------------------------------------------------------------------------

    def _upsert_vectors(self, conn: Link, name: str, rows: Iterable[tuple[int, Blob]]) -> None:
        rest = iter(rows)
        while some := dict(islice(rest, parts.CHUNK)):
            conn.execute("DELETE FROM vectors WHERE ns = ? AND name = ? AND id = ANY(?)", (self._ns, name, list(some)))
            columns = {**_VECTORS, "embedding": "vector"} if conn.has_vectors else _VECTORS
            conn.copy("vectors", columns, (self._vector_row(name, id, vector, conn.has_vectors) for id, vector in some.items()))

    def _vector_row(self, name: str, id: int, vector: Blob, embedded: bool) -> tuple[Any, ...]:
        row = (self._ns, name, id, zlib.crc32(vector), len(vector))
        if not embedded:
            return (*row, vector)
        fits = 0 < len(vector) <= 4 * MAX_DIM and len(vector) % 4 == 0
        floats = np.frombuffer(vector, "<f4") if fits else None
        return (*row, vector, None) if floats is None or not np.isfinite(floats).all() else (*row, None, floats)

    def _vectors_after(self, conn: Link, name: str, id: int) -> list[tuple[int, int, Blob]]:
        embedded = "embedding" if conn.has_vectors else "NULL"
        rows = conn.execute(
            f"SELECT id, crc, vector, {embedded} FROM vectors WHERE ns = ? AND name = ? AND id > ? ORDER BY id LIMIT ?",
            (self._ns, name, id, parts.CHUNK),
        ).fetchall()
        return [(id, crc, _bytes_of(vector, embedding)) for id, crc, vector, embedding in rows]

    def index_vectors(self, name: str, dim: int) -> bool:
        """
        Let pgvector find the nearest of the vectors of a state by an index (HNSW, cosine), also of those that come later: `nearest` is
        faster then, and may miss some. Building it takes a while, during which others may write.

        Parameters
        ----------
        name : str
        dim : int
            Length of the vectors.

        Returns
        -------
        bool
            False where there is no pgvector, or dim is beyond the 2000 that it indexes: all vectors are compared then.
        """
        super().index_vectors(name, dim)  # checks them
        if not self.pgvector or not 0 < dim <= MAX_INDEXED:
            return False
        index = f"vectors_near_{tables.key_of('near', str(self._ns), name, str(dim)) & 0xFFFFFFFFFFFFFFFF:016x}"
        self._slowly(
            f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {index} ON vectors USING hnsw ((embedding::vector({dim})) vector_cosine_ops)"
            f" WHERE ns = {self._ns} AND name = {sql.Literal(name).as_string()} AND size = {4 * dim} AND embedding IS NOT NULL"
        )
        self._slowly("ANALYZE vectors")
        return True

    def _candidates(self, name: str, query: Floats, k: int) -> Iterator[Some]:
        dim = len(query)
        if not self.pgvector or dim > MAX_DIM:
            yield from super()._candidates(name, query, k)
            return
        with self._db.reading() as link, link.raw.transaction():
            if k + MARGIN > MAX_EF:  # an index would give no more
                link.execute("SELECT set_config('enable_indexscan', 'off', true)")
            else:
                # An index is there because it was asked for: where there is one, nothing is sorted as a whole.
                wanted = "SELECT set_config('hnsw.ef_search', ?, true), set_config('enable_sort', 'off', true)"
                link.execute(wanted, (str(min(MAX_EF, max(40, 2 * k, k + MARGIN))),))
            rows = link.execute(
                "SELECT id, crc, embedding FROM vectors WHERE ns = ? AND name = ? AND size = ? AND embedding IS NOT NULL"
                f" ORDER BY embedding::vector({dim}) <=> ?, id LIMIT ?",
                (self._ns, name, 4 * dim, query, min(k + MARGIN, MAX_ID)),
                prepare=False,  # a plan for any name could not use the index of one
            ).fetchall()
        found = [(id, crc, _bytes_of(None, embedding)) for id, crc, embedding in rows]
        if any(crc != zlib.crc32(vector) for _, crc, vector in found):  # in the place of a sound one
            yield from super()._candidates(name, query, k)
            return
        if found:
            yield [id for id, _, _ in found], [vector for _, _, vector in found]
        last = -1
        while True:
            with self._db.reading() as link:
                rows = link.execute(
                    "SELECT id, crc, vector FROM vectors WHERE ns = ? AND name = ? AND size = ? AND vector IS NOT NULL AND id > ?"
                    " ORDER BY id LIMIT ?",
                    (self._ns, name, 4 * dim, last, parts.CHUNK),
                ).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            sound = [(id, vector) for id, crc, vector in rows if len(vector) == 4 * dim and crc == zlib.crc32(vector)]
            if sound:
                yield [id for id, _ in sound], [vector for _, vector in sound]

    # -- bounds and integrity --------------------------------------------------------------------------------------

    def _payload(self) -> dict[str, str]:
        return tables.COSTS

    def _live_bytes(self, conn: Link) -> int:
        held: int = conn.execute("SELECT bytes FROM namespaces WHERE ns = ?", (self._ns,)).fetchone()[0]
        return held

    def file_bytes(self) -> int:
        """Size on disk of the tables and their indexes, over all namespaces."""
        with self._db.reading() as link:
            size: int = link.execute(
                "SELECT CAST(coalesce(sum(pg_total_relation_size(c.oid)), 0) AS bigint) FROM pg_class AS c"
                " JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname = ? AND c.relkind = 'r'",
                (self._place.schema,),
            ).fetchone()[0]
        return size

    def scrub_log(self) -> None:
        """
        Let the server clear deleted rows out of the tables (VACUUM), so that their space is used again. Bytes of them may stay in pages
        until then, in the server's log and in its backups: those are the server's.
        """
        with self._db.reading():
            pass
        self._slowly(f"VACUUM {', '.join(tables.COSTS)}")

    def _slowly(self, statement: str) -> None:
        """A statement that may take long, and that no transaction can have, in a session of its own."""
        session = Connection(self._place, statement_timeout_ms=tables.MIGRATION_TIMEOUT_MS, prepare=False)
        try:
            with session.reading() as link:
                link.execute(statement)
        finally:
            session.close()

    def _database_findings(self, conn: Link) -> Iterator[str]:
        try:
            version = tables.check_version(conn, self._place)
            if version != tables.current_version():
                yield f"schema: expected version {tables.current_version()}, got {version}"
        except (SonaCorruptError, SonaVersionError) as exc:
            yield f"schema: {exc}"


def _bytes_of(vector: Blob | None, embedding: Any) -> Blob:
    if vector is not None:
        return vector
    return np.asarray(embedding.to_numpy(), "<f4").tobytes()


def namespaces(url: str) -> list[str]:
    """
    Names of the namespaces of a store, sorted; nothing is written.

    Raises
    ------
    SonaStoreError, SonaCorruptError, SonaVersionError
        There is no such store, or it cannot be read.
    """
    place = Place.of(url)
    session = Connection(place, statement_timeout_ms=10_000, prepare=False)
    try:
        with session.reading() as link:
            if tables.check_version(link, place) == 0:
                raise SonaStoreError(f"no such store: {place.shown!r}")
            return sorted(row[0] for row in link.execute("SELECT name FROM namespaces"))
    finally:
        session.close()


def without_password(url: str) -> str:
    """A URL as it may be shown."""
    return Place.of(url).shown
