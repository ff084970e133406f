"""One namespace of a database, as the parts of a store see it: SQL that SQLite and PostgreSQL both take, in short transactions."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self

from sona.errors import SonaCorruptError, SonaStoreError, SonaTypeError, SonaValueError
from sona.store.arguments import Row
from sona.store.outcomes import LeaseLost
from sona.store.rows import MAX_ID, SEQUENCE_BITS, Blob, DecisionRow, FeedbackRow, TrajectoryRow

CHUNK = 256  # rows read at a time, so that no reader holds the log back


class Found(Protocol):
    """What a statement found or changed."""

    @property
    def rowcount(self) -> int: ...
    def fetchone(self) -> Any: ...
    def fetchall(self) -> list[Any]: ...
    def __iter__(self) -> Iterator[Any]: ...


class Sql(Protocol):
    """A connection that one thread has for itself. Parameters are written ``?``."""

    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> Found: ...
    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> Found: ...


class Database(Protocol):
    """A connection that threads share; in place of its errors come sona's."""

    @property
    def closed(self) -> bool: ...
    def reading(self) -> AbstractContextManager[Any]: ...
    def writing(self) -> AbstractContextManager[Any]: ...
    def close(self) -> None: ...


class Namespace:
    """
    What the parts of a store share. `SqliteStore` and `PostgresStore` fill in what the two databases do differently.

    Attributes
    ----------
    path : str
        Where the database is, as errors name it; no password.
    namespace : str
    """

    path: str
    namespace: str
    _db: Database
    _ns: int
    _clock: Callable[[], float]
    _session: int | None = None
    _feedback_by_id: ClassVar[str] = "feedback"
    """Table of the rewards, to be read by id."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path!r} namespace={self.namespace!r}{' closed' if self.closed else ''}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether it cannot be used any more: after `close`, and in a forked child."""
        return self._db.closed

    def close(self) -> None:
        """Give back the lease and the database; a second call does nothing. Waits for a call that is under way."""
        raise NotImplementedError

    @property
    def term(self) -> int:
        """See `Store`."""
        raise NotImplementedError

    def _namespace_key(self) -> int:
        find = "SELECT ns FROM namespaces WHERE name = ?"
        with self._db.reading() as conn:
            row = conn.execute(find, (self.namespace,)).fetchone()
        if row is None:
            with self._db.writing() as conn:
                conn.execute("INSERT INTO namespaces (name) VALUES (?) ON CONFLICT (name) DO NOTHING", (self.namespace,))
                row = conn.execute(find, (self.namespace,)).fetchone()
        key: int = row[0]
        return key

    @property
    def session(self) -> int:
        """A number no other opening of this database has or had; the upper bits of decision ids.

        ``id = session << 40 | sequence`` is unique over threads, processes and restarts.
        """
        with self._db.reading():  # one thread at a time
            if self._session is None:
                self._session = self.new_session()
            return self._session

    def new_session(self) -> int:
        """The same for another user of this object, who makes ids of its own; `session` stays as it is."""
        with self._db.writing() as conn:
            conn.execute("UPDATE counters SET value = value + 1 WHERE name = 'session'")
            session: int = conn.execute("SELECT value FROM counters WHERE name = 'session'").fetchone()[0]
        if session > MAX_ID >> SEQUENCE_BITS:
            raise SonaStoreError(f"{self.path}: all {MAX_ID >> SEQUENCE_BITS} sessions of this store are used up")
        return session

    def _leading(self, term: int | None) -> AbstractContextManager[Any]:
        """
        A transaction that only the holder of the learning lease can do; takes it when it is free. SonaStoreError when it is not, LeaseLost
        when somebody else may have held it since `term`.
        """
        raise NotImplementedError

    def _prune_when_due(self, appended: int) -> None:
        """Keep the bounds after that many new rows."""
        raise NotImplementedError

    def _insert_decisions(self, conn: Any, rows: list[DecisionRow]) -> None:
        """Rows whose id is there already stay as they were."""
        raise NotImplementedError

    def _insert_feedback(self, conn: Any, first: int, rows: list[FeedbackRow]) -> None:
        """Under the numbers from `first` on."""
        raise NotImplementedError

    def _upsert_trajectories(self, conn: Any, rows: list[TrajectoryRow]) -> None:
        """In the place of those of their ids; there may be several of one id, of which the last counts."""
        raise NotImplementedError

    def _upsert_vectors(self, conn: Any, name: str, rows: Iterable[tuple[int, Blob]]) -> None:
        """(id, bytes), in the place of those of their ids."""
        raise NotImplementedError

    def _vectors_after(self, conn: Any, name: str, id: int) -> list[tuple[int, int, Blob]]:
        """At most CHUNK vectors (id, CRC-32, bytes) with an id above `id`, ascending."""
        raise NotImplementedError

    def _payload(self) -> dict[str, str]:
        """{table: SQL for what one of its rows adds to ``namespaces.bytes``}."""
        raise NotImplementedError

    def _live_bytes(self, conn: Any) -> int:
        """What `bytes` returns, inside of a transaction."""
        raise NotImplementedError

    def _give_back(self, conn: Any, most: int) -> None:
        """Give at most `most` pages of space that is no longer used to the file system, where the database leaves that to its user."""

    def _granted(self, conn: Any, name: str, number: int) -> None:
        """In the transaction that publishes a version: whoever asked for it has it."""
        raise NotImplementedError

    def _changed(self, conn: Any) -> None:
        """Tell the others, when the transaction is committed, that a state or version has changed."""

    def scrub_log(self) -> None:
        """Make the bytes of deleted rows unreadable, as far as the database can; SonaStoreError when not now."""
        raise NotImplementedError

    def _row(self, kind: type[Row], values: tuple[Any, ...]) -> Row:
        try:
            return kind(*values)
        except (SonaTypeError, SonaValueError) as exc:
            raise SonaCorruptError(f"{self.path}: a row of namespace {self.namespace!r} is damaged: {exc}") from exc

    def _counter(self, conn: Sql, name: str) -> int:
        row = conn.execute("SELECT value FROM counters WHERE name = ?", (f"{name}:{self._ns}",)).fetchone()
        return 0 if row is None else row[0]

    def _count_up(self, conn: Sql, name: str, value: int) -> None:
        conn.execute(
            "INSERT INTO counters (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = counters.value + excluded.value",
            (f"{name}:{self._ns}", value),
        )

    def _taken(self) -> SonaStoreError:
        return SonaStoreError(f"{self.path}: another process or store holds the learning lease of namespace {self.namespace!r}")

    def _lost(self, term: int) -> LeaseLost:
        held = f"this is term {self.term}, that was {term}"
        return LeaseLost(f"{self.path}: the learning lease of namespace {self.namespace!r} was lost in between: {held}")
