"""The tables of a store on a server, how an older schema becomes this one, and what is refused."""

import hashlib
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from sona._version import __version__
from sona.errors import SonaCorruptError, SonaStoreError, SonaVersionError
from sona.store.postgres.url import Place
from sona.store.rows import DECISION_OVERHEAD, FEEDBACK_OVERHEAD, TRAJECTORY_OVERHEAD

if TYPE_CHECKING:
    from sona.store.postgres.connection import Link

EXTENSION = "vector"  # pgvector
OLDEST_SERVER = 130000
MIGRATION_TIMEOUT_MS = 600_000

# What one row of a table adds to namespaces.bytes.
COSTS = {
    "decisions": f"length(x) + coalesce(length(candidates), 0) + length(proposals) + coalesce(length(source), 0) + {DECISION_OVERHEAD}",
    "feedback": f"coalesce(length(source), 0) + {FEEDBACK_OVERHEAD}",
    "trajectories": f"length(payload) + {TRAJECTORY_OVERHEAD}",
    "state": "length(blob) + 96",
    "arms": "length(names) + length(vectors) + length(costs) + 96",
    "versions": "length(factors) + length(reason) + length(about) + 160",
    "vectors": "size + 64",
}


def _triggers(*tables: str) -> tuple[str, ...]:
    """Per statement and not per row: each would make another version of the namespace's row."""
    made = []
    for table in tables:
        cost = COSTS[table]
        book = (
            "UPDATE {schema}.namespaces AS n SET bytes = n.bytes %s s.cost"
            f" FROM (SELECT ns, sum({cost}) AS cost FROM %s GROUP BY ns) AS s WHERE n.ns = s.ns;"
        )
        add, take = book % ("+", "fresh"), book % ("-", "stale")
        for event, done, body, tables_seen in (
            ("INSERT", "added", add, "NEW TABLE AS fresh"),
            ("DELETE", "removed", take, "OLD TABLE AS stale"),
            ("UPDATE", "changed", take + " " + add, "OLD TABLE AS stale NEW TABLE AS fresh"),
        ):
            made.append(
                f"CREATE FUNCTION {{schema}}.{table}_{done}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN NULL; END $$"
            )
            made.append(
                f"CREATE TRIGGER {table}_{done} AFTER {event} ON {{schema}}.{table} REFERENCING {tables_seen}"
                f" FOR EACH STATEMENT EXECUTE FUNCTION {{schema}}.{table}_{done}()"
            )
    return tuple(made)


_VERSION_1 = (
    "CREATE TABLE {schema}.sona_schema (version INTEGER NOT NULL)",
    "INSERT INTO {schema}.sona_schema VALUES (1)",
    "CREATE TABLE {schema}.counters (name TEXT PRIMARY KEY, value BIGINT NOT NULL)",
    "INSERT INTO {schema}.counters VALUES ('session', 0)",
    # What each writing session did last: a commit whose answer was lost is looked up here.
    "CREATE TABLE {schema}.commits (session BIGINT PRIMARY KEY, mark BIGINT NOT NULL, time TIMESTAMPTZ NOT NULL) WITH (fillfactor = 50)",
    # last_seq and last_arm_set never fall, so that neither number is given out twice; fence is the term of the learning lease.
    """CREATE TABLE {schema}.namespaces (
        ns INTEGER GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name TEXT NOT NULL UNIQUE, last_seq BIGINT NOT NULL DEFAULT 0,
        last_arm_set BIGINT NOT NULL DEFAULT 0, arm_set BIGINT NOT NULL DEFAULT 0, bytes BIGINT NOT NULL DEFAULT 0,
        fence BIGINT NOT NULL DEFAULT 0) WITH (fillfactor = 20)""",
    """CREATE TABLE {schema}.decisions (
        pos BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, ns INTEGER NOT NULL, id BIGINT NOT NULL, time DOUBLE PRECISION NOT NULL,
        x BYTEA NOT NULL, arm BIGINT NOT NULL, arm_set BIGINT NOT NULL, candidates BYTEA,
        propensity DOUBLE PRECISION NOT NULL, proposals BYTEA NOT NULL, source TEXT)""",
    "CREATE UNIQUE INDEX decisions_id ON {schema}.decisions (ns, id)",
    "CREATE INDEX decisions_time ON {schema}.decisions (ns, time, pos)",
    "CREATE INDEX decisions_arm_set ON {schema}.decisions (ns, arm_set)",
    "CREATE INDEX decisions_source ON {schema}.decisions (ns, source) WHERE source IS NOT NULL",
    """CREATE TABLE {schema}.feedback (
        ns INTEGER NOT NULL, seq BIGINT NOT NULL, id BIGINT NOT NULL, reward DOUBLE PRECISION NOT NULL, time DOUBLE PRECISION NOT NULL,
        source TEXT, PRIMARY KEY (ns, seq))""",
    "CREATE INDEX feedback_id ON {schema}.feedback (ns, id, seq)",
    "CREATE INDEX feedback_time ON {schema}.feedback (ns, time)",
    "CREATE INDEX feedback_source ON {schema}.feedback (ns, source) WHERE source IS NOT NULL",
    """CREATE TABLE {schema}.trajectories (
        pos BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, ns INTEGER NOT NULL, id BIGINT NOT NULL, time DOUBLE PRECISION NOT NULL,
        payload BYTEA NOT NULL, quality DOUBLE PRECISION)""",
    "CREATE UNIQUE INDEX trajectories_id ON {schema}.trajectories (ns, id)",
    "CREATE INDEX trajectories_time ON {schema}.trajectories (ns, time, pos)",
    """CREATE TABLE {schema}.state (
        pos BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, ns INTEGER NOT NULL, name TEXT NOT NULL, generation BIGINT NOT NULL,
        applied_seq BIGINT NOT NULL, sha256 BYTEA NOT NULL, blob BYTEA NOT NULL)""",
    "CREATE UNIQUE INDEX state_name ON {schema}.state (ns, name, generation)",
    """CREATE TABLE {schema}.arms (
        pos BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, ns INTEGER NOT NULL, version BIGINT NOT NULL, time DOUBLE PRECISION NOT NULL,
        sha256 BYTEA NOT NULL, names BYTEA NOT NULL, vectors BYTEA NOT NULL, costs BYTEA NOT NULL)""",
    "CREATE UNIQUE INDEX arms_version ON {schema}.arms (ns, version)",
    "CREATE UNIQUE INDEX arms_content ON {schema}.arms (ns, sha256)",
    # Of each name at most one version is published.
    """CREATE TABLE {schema}.versions (
        pos BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, ns INTEGER NOT NULL, name TEXT NOT NULL, number BIGINT NOT NULL,
        parent BIGINT, time DOUBLE PRECISION NOT NULL, verdict TEXT NOT NULL, reason TEXT NOT NULL, about TEXT NOT NULL,
        published BOOLEAN NOT NULL DEFAULT FALSE, sha256 BYTEA NOT NULL, factors BYTEA NOT NULL)""",
    "CREATE UNIQUE INDEX versions_number ON {schema}.versions (ns, name, number)",
    "CREATE UNIQUE INDEX versions_published ON {schema}.versions (ns, name) WHERE published",
    # The bytes are in `vector`, or in a column `embedding` of pgvector's type that `prepare` adds where there is pgvector.
    """CREATE TABLE {schema}.vectors (
        pos BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, ns INTEGER NOT NULL, name TEXT NOT NULL, id BIGINT NOT NULL,
        crc BIGINT NOT NULL, size INTEGER NOT NULL, vector BYTEA)""",
    "CREATE UNIQUE INDEX vectors_id ON {schema}.vectors (ns, name, id)",
    # Floats hardly get smaller.
    *(
        f"ALTER TABLE {{schema}}.{table} ALTER COLUMN {column} SET STORAGE EXTERNAL"
        for table, column in (("decisions", "x"), ("state", "blob"), ("arms", "vectors"), ("versions", "factors"), ("vectors", "vector"))
    ),
    *_triggers(*COSTS),
)

# Entry n turns a schema of version n into one of n + 1; entries are appended and never edited.
MIGRATIONS: tuple[tuple[str, ...], ...] = (_VERSION_1,)


def current_version() -> int:
    """The schema version that this sona writes."""
    return len(MIGRATIONS)


def key_of(*parts: str) -> int:
    """A number for an advisory lock, of 64 bits with a sign."""
    return int.from_bytes(hashlib.sha256("\0".join(("sona", *parts)).encode()).digest()[:8], "little", signed=True)


def set_up(link: "Link", place: Place, timeout_ms: int) -> None:
    """
    Options of a new session: where names are looked up, timeouts, and commits that wait for the disk.

    Raises
    ------
    SonaStoreError
        A server that is too old.
    """
    if link.raw.info.server_version < OLDEST_SERVER:
        raise SonaStoreError(f"{place.shown}: expected PostgreSQL {OLDEST_SERVER // 10000} or newer, got {link.raw.info.server_version}")
    options = {
        "statement_timeout": timeout_ms,
        "lock_timeout": timeout_ms,
        "idle_in_transaction_session_timeout": 60_000,
        "tcp_keepalives_idle": 5,  # a client that is gone without a word loses its lease soon
        "tcp_keepalives_interval": 2,
        "tcp_keepalives_count": 3,
        "default_transaction_isolation": "read committed",
    }
    calls = ", ".join(["set_config(?, ?, false)"] * len(options))
    link.execute(f"SELECT {calls}", [str(each) for pair in options.items() for each in pair])
    link.execute("SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'")
    _look_up_in(link, place)


def _look_up_in(link: "Link", place: Place) -> None:
    """Names are looked up in the schema, and in that of pgvector where there is one by now."""
    names = [sql.Identifier(each).as_string() for each in (place.schema, *_home_of_pgvector(link))]
    link.execute("SELECT set_config('search_path', ?, false)", (", ".join(names),))


def _home_of_pgvector(link: "Link") -> tuple[str, ...]:
    """Name of the schema that it is in; empty without it."""
    found: tuple[str, ...] | None = link.execute(
        "SELECT n.nspname FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace WHERE e.extname = ?", (EXTENSION,)
    ).fetchone()
    return found or ()


def check_version(link: "Link", place: Place) -> int:
    """
    The schema's version; 0 where there is none, or nothing in it.

    Raises
    ------
    SonaCorruptError
        A schema with somebody else's tables.
    SonaVersionError
        One that is newer than this sona knows.
    """
    tables = {row[0] for row in link.execute("SELECT tablename FROM pg_tables WHERE schemaname = ?", (place.schema,))}
    if "sona_schema" not in tables:
        if tables:
            raise SonaCorruptError(f"{place.shown}: expected a schema of sona's or an empty one, got {place.schema!r} with other tables")
        return 0
    version: int = link.execute("SELECT max(version) FROM sona_schema").fetchone()[0]
    if version > current_version():
        known = f"{current_version()} or older (sona {__version__})"
        raise SonaVersionError(f"{place.shown}: expected schema version {known}, got {version}: a newer sona wrote it")
    return version


def prepare(link: "Link", place: Place) -> None:
    """Bring the schema to the current version, and pgvector into it where that can be had; writes nothing into what is refused."""
    if check_version(link, place) == current_version() and not _pgvector_wanted(link, place):
        return
    with link.raw.transaction():
        limits = (str(MIGRATION_TIMEOUT_MS),) * 2
        link.execute("SELECT set_config('statement_timeout', ?, true), set_config('lock_timeout', ?, true)", limits)
        link.execute("SELECT pg_advisory_xact_lock(?)", (key_of("schema", place.schema),))
        version = check_version(link, place)  # another process may have been first
        name = sql.Identifier(place.schema).as_string()
        if version == 0 and link.execute("SELECT 1 FROM pg_namespace WHERE nspname = ?", (place.schema,)).fetchone() is None:
            link.execute(f"CREATE SCHEMA {name}")
        if 0 < version < current_version():  # nobody may be writing
            link.execute("LOCK TABLE namespaces IN EXCLUSIVE MODE")
        for statements in MIGRATIONS[version:]:
            for statement in statements:
                link.execute(statement.replace("{schema}", name))
        if version < current_version():
            link.execute("UPDATE sona_schema SET version = ?", (current_version(),))
        _add_pgvector(link, place)


def _pgvector_wanted(link: "Link", place: Place) -> bool:
    """Whether vectors are kept as bytes although the server could have them as vectors."""
    if link.execute("SELECT 1 FROM pg_available_extensions WHERE name = ?", (EXTENSION,)).fetchone() is None:
        return False
    return not _has_embeddings(link, place)


def _has_embeddings(link: "Link", place: Place) -> bool:
    return (
        link.execute(
            "SELECT 1 FROM pg_attribute WHERE attrelid = to_regclass(quote_ident(?) || '.vectors') AND attname = 'embedding'",
            (place.schema,),
        ).fetchone()
        is not None
    )


def _add_pgvector(link: "Link", place: Place) -> None:
    if not _pgvector_wanted(link, place):
        return
    try:
        with link.raw.transaction():  # a savepoint
            found = _home_of_pgvector(link)
            if not found:
                link.execute("SELECT pg_advisory_xact_lock(?)", (key_of("extension"),))
                link.execute(f"CREATE EXTENSION IF NOT EXISTS {EXTENSION} SCHEMA public")
                found = ("public",)
            home = sql.Identifier(found[0]).as_string()
            link.execute(f"ALTER TABLE vectors ADD COLUMN embedding {home}.vector")
            link.execute("SELECT set_config('search_path', current_setting('search_path') || ', ' || ?, false)", (home,))
    except psycopg.Error:  # not allowed to: vectors are kept as bytes
        return


def adopt_vectors(link: "Link", place: Place) -> None:
    """Let the session read and write pgvector's type where the schema has it."""
    if not _has_embeddings(link, place):
        return
    from pgvector.psycopg import register_vector

    _look_up_in(link, place)  # another process may have brought pgvector since this one looked
    register_vector(link.raw)
    link.has_vectors = True
