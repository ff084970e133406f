"""The tables of a store's file, how a file of an older schema becomes one of this, and what is refused."""

import itertools
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing

from sona._version import __version__
from sona.errors import SonaCorruptError, SonaStoreError, SonaVersionError
from sona.store.rows import DECISION_OVERHEAD, FEEDBACK_OVERHEAD, TRAJECTORY_OVERHEAD

APPLICATION_ID = 0x534F4E41  # "SONA"
PAGE_BYTES = 4096
WAL_PAGES = 1000  # at most about 4 MB of write-ahead log before it is copied back

# What one row of a table adds to namespaces.bytes; {0} stands for nothing, new. or old.
_COSTS = {
    "decisions": "length({0}x) + coalesce(length({0}candidates), 0) + length({0}proposals) + coalesce(length({0}source), 0)"
    f" + {DECISION_OVERHEAD}",
    "feedback": f"coalesce(length({{0}}source), 0) + {FEEDBACK_OVERHEAD}",
    "trajectories": f"length({{0}}payload) + {TRAJECTORY_OVERHEAD}",
    "state": "length({0}blob) + 96",
    "arms": "length({0}names) + length({0}vectors) + length({0}costs) + 96",
    "versions": "length({0}factors) + length({0}reason) + length({0}about) + 160",
    "vectors": "length({0}vector) + 64",
}


def payload_sql() -> dict[str, str]:
    """{table: SQL for what one of its rows adds to ``namespaces.bytes``}."""
    return {table: cost.format("") for table, cost in _COSTS.items()}


def _triggers(*tables: str) -> tuple[str, ...]:
    made = []
    for table in tables:
        cost = _COSTS[table]
        add = f"UPDATE namespaces SET bytes = bytes + ({cost.format('new.')}) WHERE ns = new.ns;"
        take = f"UPDATE namespaces SET bytes = bytes - ({cost.format('old.')}) WHERE ns = old.ns;"
        made.append(f"CREATE TRIGGER {table}_added AFTER INSERT ON {table} BEGIN {add} END")
        made.append(f"CREATE TRIGGER {table}_removed AFTER DELETE ON {table} BEGIN {take} END")
        made.append(f"CREATE TRIGGER {table}_changed AFTER UPDATE ON {table} BEGIN {take} {add} END")
    return tuple(made)


_VERSION_1 = (
    "CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
    "INSERT INTO counters VALUES ('session', 0)",
    # last_seq and last_arm_set never fall, so that neither number is given out twice; arm_set is the set put last.
    """CREATE TABLE namespaces (
        ns INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, last_seq INTEGER NOT NULL DEFAULT 0,
        last_arm_set INTEGER NOT NULL DEFAULT 0, arm_set INTEGER NOT NULL DEFAULT 0, bytes INTEGER NOT NULL DEFAULT 0)""",
    """CREATE TABLE decisions (
        pos INTEGER PRIMARY KEY, ns INTEGER NOT NULL, id INTEGER NOT NULL, time REAL NOT NULL, x BLOB NOT NULL, arm INTEGER NOT NULL,
        arm_set INTEGER NOT NULL, candidates BLOB, propensity REAL NOT NULL, proposals BLOB NOT NULL, source TEXT)""",
    "CREATE UNIQUE INDEX decisions_id ON decisions (ns, id)",
    "CREATE INDEX decisions_time ON decisions (ns, time)",
    "CREATE INDEX decisions_arm_set ON decisions (ns, arm_set)",
    "CREATE INDEX decisions_source ON decisions (ns, source) WHERE source IS NOT NULL",
    """CREATE TABLE feedback (
        ns INTEGER NOT NULL, seq INTEGER NOT NULL, id INTEGER NOT NULL, reward REAL NOT NULL, time REAL NOT NULL, source TEXT,
        PRIMARY KEY (ns, seq)) WITHOUT ROWID""",
    "CREATE INDEX feedback_id ON feedback (ns, id)",
    "CREATE INDEX feedback_time ON feedback (ns, time)",
    "CREATE INDEX feedback_source ON feedback (ns, source) WHERE source IS NOT NULL",
    """CREATE TABLE trajectories (
        pos INTEGER PRIMARY KEY, ns INTEGER NOT NULL, id INTEGER NOT NULL, time REAL NOT NULL, payload BLOB NOT NULL, quality REAL)""",
    "CREATE UNIQUE INDEX trajectories_id ON trajectories (ns, id)",
    "CREATE INDEX trajectories_time ON trajectories (ns, time)",
    """CREATE TABLE state (
        pos INTEGER PRIMARY KEY, ns INTEGER NOT NULL, name TEXT NOT NULL, generation INTEGER NOT NULL, applied_seq INTEGER NOT NULL,
        sha256 BLOB NOT NULL, blob BLOB NOT NULL)""",
    "CREATE UNIQUE INDEX state_name ON state (ns, name, generation)",
    """CREATE TABLE arms (
        pos INTEGER PRIMARY KEY, ns INTEGER NOT NULL, version INTEGER NOT NULL, time REAL NOT NULL, sha256 BLOB NOT NULL,
        names BLOB NOT NULL, vectors BLOB NOT NULL, costs BLOB NOT NULL)""",
    "CREATE UNIQUE INDEX arms_version ON arms (ns, version)",
    "CREATE UNIQUE INDEX arms_content ON arms (ns, sha256)",
    *_triggers("decisions", "feedback", "trajectories", "state", "arms"),
)

# Of each name at most one version is published. Rows are added and deleted; only `published` changes.
_VERSION_2 = (
    """CREATE TABLE versions (
        pos INTEGER PRIMARY KEY, ns INTEGER NOT NULL, name TEXT NOT NULL, number INTEGER NOT NULL, parent INTEGER, time REAL NOT NULL,
        verdict TEXT NOT NULL, reason TEXT NOT NULL, about TEXT NOT NULL, published INTEGER NOT NULL DEFAULT 0, sha256 BLOB NOT NULL,
        factors BLOB NOT NULL)""",
    "CREATE UNIQUE INDEX versions_number ON versions (ns, name, number)",
    "CREATE UNIQUE INDEX versions_published ON versions (ns, name) WHERE published",
    *_triggers("versions"),
)

# What belongs to a state and is too much to be written whenever the state is: rows are added, replaced and deleted together with it.
_VERSION_3 = (
    """CREATE TABLE vectors (
        pos INTEGER PRIMARY KEY, ns INTEGER NOT NULL, name TEXT NOT NULL, id INTEGER NOT NULL, crc INTEGER NOT NULL,
        vector BLOB NOT NULL)""",
    "CREATE UNIQUE INDEX vectors_id ON vectors (ns, name, id)",
    *_triggers("vectors"),
)

# Entry n turns a file of schema version n into one of n + 1; entries are appended and never edited.
MIGRATIONS: tuple[tuple[str, ...], ...] = (_VERSION_1, _VERSION_2, _VERSION_3)


def current_version() -> int:
    """The schema version that this sona writes."""
    return len(MIGRATIONS)


def check_version(conn: sqlite3.Connection, path: str) -> int:
    """The file's schema version; 0 for a file without any table.

    Raises
    ------
    SonaCorruptError
        A database that is not sona's.
    SonaVersionError
        A schema newer than this sona knows.
    """
    # One snapshot for the three reads: another process may be making the tables just now.
    own = not conn.in_transaction
    if own:
        conn.execute("BEGIN")
    try:
        application: int = conn.execute("PRAGMA application_id").fetchone()[0]
        version: int = conn.execute("PRAGMA user_version").fetchone()[0]
        tables: int = conn.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    finally:
        if own:
            conn.execute("ROLLBACK")
    if application != APPLICATION_ID:
        if application or version or tables:
            raise SonaCorruptError(
                f"{path}: expected a sona store (application id {APPLICATION_ID:#x}), got another SQLite database ({application:#x})"
            )
        return 0
    if version > current_version():
        raise SonaVersionError(
            f"{path}: expected schema version {current_version()} or older (sona {__version__}), got {version}: a newer sona wrote it"
        )
    return version


def prepare(conn: sqlite3.Connection, path: str, *, busy_timeout_ms: int) -> None:
    """Set the connection up for durable, shared use and bring the file to the current schema.

    Nothing is written to a file that `check_version` refuses.
    """
    version = check_version(conn, path)
    if version == 0:  # both only work before the first page is written
        conn.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        conn.execute("PRAGMA auto_vacuum = INCREMENTAL")
    _enter_wal(conn, path, busy_timeout_ms)
    for pragma in (
        "synchronous = FULL",  # a commit returns when the log is on the disk
        "fullfsync = ON",  # macOS: past the drive's cache
        "secure_delete = ON",  # what is forgotten is overwritten
        "temp_store = MEMORY",  # no plaintext beside the file
        "trusted_schema = OFF",
        "cell_size_check = ON",
        f"wal_autocheckpoint = {WAL_PAGES}",
        f"journal_size_limit = {WAL_PAGES * PAGE_BYTES}",
    ):
        conn.execute(f"PRAGMA {pragma}").fetchall()
    if version < current_version():
        _migrate(conn, path)


def _enter_wal(conn: sqlite3.Connection, path: str, busy_timeout_ms: int) -> None:
    # The change of mode needs the file alone for a moment and does not always wait for it as other statements do.
    give_up = time.monotonic() + busy_timeout_ms / 1000
    while True:
        try:
            mode = conn.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) or time.monotonic() >= give_up:
                raise
            time.sleep(0.005)
            continue
        if mode != "wal":
            raise SonaStoreError(f"{path}: expected a file system that supports SQLite's WAL mode, got journal mode {mode!r}")
        return


def _migrate(conn: sqlite3.Connection, path: str) -> None:
    conn.execute("BEGIN IMMEDIATE")
    try:
        version = check_version(conn, path)  # another process may have been first
        for statements in MIGRATIONS[version:]:
            for statement in statements:
                conn.execute(statement)
        conn.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        conn.execute(f"PRAGMA user_version = {current_version()}")
        conn.execute("COMMIT")
    except BaseException:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        raise


def differences(conn: sqlite3.Connection) -> Iterator[str]:
    """Tables, indexes and triggers that are not those that a new file would get, a sentence each."""
    listing = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"
    with closing(sqlite3.connect(":memory:")) as fresh:
        for statement in itertools.chain.from_iterable(MIGRATIONS):
            fresh.execute(statement)
        wanted = dict(fresh.execute(listing).fetchall())
    found = dict(conn.execute(listing).fetchall())
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            yield f"schema: {name} is not as sona made it"
