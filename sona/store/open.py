"""Which store is meant by a path or a URL."""

import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from sona.errors import SonaCorruptError, SonaStoreError, SonaValueError
from sona.store.protocol import Store
from sona.store.sqlite import SqliteStore

SCHEMES = ("postgresql://", "postgres://")
_OTHER = re.compile(r"(?:[a-z][a-z0-9+.-]*:(?=//)|postgres(?:ql)?:)", re.IGNORECASE)


def is_url(where: object) -> bool:
    """Whether `where` names a PostgreSQL server; else a path, or SonaValueError where it is another URL."""
    if not isinstance(where, str) or where.startswith(SCHEMES):
        return isinstance(where, str)
    if other := _OTHER.match(where):
        raise SonaValueError(f"expected a path, or a URL that begins with postgresql://, got one that begins with {other.group()}")
    return False


def open_store(where: str | os.PathLike[str], **options: Any) -> Store:
    """
    The store at a path or URL.

    Parameters
    ----------
    where : path or str
        A file of SQLite, or ``postgresql://user@host/database``.
    options
        Of `SqliteStore` or `PostgresStore`: namespace, max_bytes, retention_days, ...

    Raises
    ------
    MissingExtraError
        A URL, and psycopg is not installed.
    SonaValueError
        A URL of something else.
    SonaError
        As the stores.
    """
    if not is_url(where):
        return SqliteStore(where, **options)
    from sona.store.postgres import PostgresStore

    return PostgresStore(os.fspath(where), **options)


def namespaces_of(where: str | os.PathLike[str]) -> list[str]:
    """
    Names of a store's namespaces, read without writing: to look at a store must not make it, nor a namespace in it.

    Raises
    ------
    SonaStoreError, SonaCorruptError, SonaVersionError
        There is no such store, or it cannot be read.
    """
    if is_url(where):
        from sona.store.postgres import namespaces

        return namespaces(os.fspath(where))
    place = Path(where)
    if place.is_dir():
        raise SonaStoreError(f"expected a store, a file or a URL, got the directory {os.fspath(where)!r}")
    if not place.is_file():
        raise SonaStoreError(f"no such store: {os.fspath(where)!r}")
    try:
        with closing(sqlite3.connect(f"{place.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            return [row[0] for row in connection.execute("SELECT name FROM namespaces ORDER BY name")]
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise SonaCorruptError(f"{os.fspath(where)} is not a sona store that can be read: {error}") from None


def shown(where: str | os.PathLike[str]) -> str:
    """`where` as reports name it: of a URL without the password."""
    if not is_url(where):
        return os.fspath(where)
    from sona.store.postgres import without_password

    return without_password(os.fspath(where))
