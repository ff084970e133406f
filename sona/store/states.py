"""What was learned, in a namespace: states, arm sets, and versions."""

import json
import warnings
from collections.abc import Iterable, Sequence
from typing import SupportsIndex

from sona.errors import SonaCorruptError, SonaStoreError, SonaTypeError, SonaWarning
from sona.store import pruning
from sona.store.arguments import check_count, check_name, id_of, rows_of
from sona.store.checksums import arms_digest, state_digest, version_digest
from sona.store.namespace import Namespace, Sql
from sona.store.rows import Blob, VersionRow

VERSIONS_KEPT = 20  # of each name, beside the published one


class States(Namespace):
    """The methods of a store for what was learned."""

    # -- states ----------------------------------------------------------------------------------------------------

    def put_state(
        self,
        name: str,
        blob: Blob,
        applied_seq: int,
        *,
        publish: int | None = None,
        vectors: Iterable[tuple[int, Blob]] = (),
        drop: Iterable[int] | None = (),
        term: int | None = None,
    ) -> None:
        """Keep `blob` as the state of that name, learned from the feedback up to number `applied_seq`; durable on return.

        The sound state before it is kept as well. Takes the learning lease when it is free. With `publish`, the version of that number
        becomes the published one in the same transaction; so do `vectors`, (id, bytes), become what `vectors_of` returns for these ids, and
        those of the ids `drop` are deleted; None: all others.

        Raises
        ------
        SonaStoreError
            Another store holds the lease, or may have held it since `term` where that is given, there is no such version, or the write
            failed; the old state stays.
        """
        check_name("state name", name)
        if type(blob) is not Blob:
            raise SonaTypeError(f"expected the state to be bytes, got {type(blob).__name__}")
        check_count("applied_seq", applied_seq)
        with self._leading(term) as conn:
            if publish is not None:
                self._publish(conn, name, publish)
            if drop is None:
                conn.execute("DELETE FROM vectors WHERE ns = ? AND name = ?", (self._ns, name))
            else:
                pruning.delete_vectors(conn, self._ns, name, drop)
            self._upsert_vectors(conn, name, vectors)
            kept, newest = -1, 0
            for generation, seq, digest, old in self._generations(conn, name):
                newest = max(newest, generation)
                if kept < 0 and digest == state_digest(seq, old):
                    kept = generation
            conn.execute("DELETE FROM state WHERE ns = ? AND name = ? AND generation <> ?", (self._ns, name, kept))
            conn.execute(
                "INSERT INTO state (ns, name, generation, applied_seq, sha256, blob) VALUES (?, ?, ?, ?, ?, ?)",
                (self._ns, name, newest + 1, applied_seq, state_digest(applied_seq, blob), blob),
            )
            self._changed(conn)

    def get_state(self, name: str) -> tuple[Blob, int] | None:
        """(blob, applied_seq) of the newest sound state of that name; None when there never was one.

        Raises
        ------
        SonaCorruptError
            No kept state matches its checksum.

        Warns
        -----
        SonaWarning
            The newest state is corrupt and the one before it is returned.
        """
        with self._db.reading() as conn:
            generations = self._generations(conn, name)
        for age, (_, seq, digest, blob) in enumerate(generations):
            if digest == state_digest(seq, blob):
                if age:
                    text = f"{self.path}: state {name!r} does not match its checksum; going back to the one before it (feedback {seq})"
                    warnings.warn(text, SonaWarning, stacklevel=2)
                return blob, seq
        if generations:
            raise SonaCorruptError(f"{self.path}: no kept state {name!r} matches its checksum")
        return None

    def _generations(self, conn: Sql, name: str) -> list[tuple[int, int, Blob, Blob]]:
        """(generation, applied_seq, sha256, blob), newest first."""
        return conn.execute(
            "SELECT generation, applied_seq, sha256, blob FROM state WHERE ns = ? AND name = ? ORDER BY generation DESC", (self._ns, name)
        ).fetchall()

    def state_names(self) -> list[str]:
        """Names under which there is a state, sorted."""
        with self._db.reading() as conn:
            return sorted(row[0] for row in conn.execute("SELECT DISTINCT name FROM state WHERE ns = ?", (self._ns,)))

    # -- arm sets --------------------------------------------------------------------------------------------------

    def put_arms(self, names: Sequence[str], vectors: Blob, costs: Blob) -> int:
        """Keep an arm set and make it the latest; the same content always has the same version.

        Parameters
        ----------
        names : sequence of str
            K arm names.
        vectors, costs : bytes
            Opaque here: raw (K, d) vectors and K costs.

        Returns
        -------
        int
            The version, from 1 on.
        """
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise SonaTypeError("expected arm names as a sequence of str")
        if type(vectors) is not Blob or type(costs) is not Blob:
            raise SonaTypeError(f"expected vectors and costs as bytes, got {type(vectors).__name__} and {type(costs).__name__}")
        listed = json.dumps(list(names)).encode()
        digest = arms_digest(listed, vectors, costs)
        with self._db.writing() as conn:
            row = conn.execute("SELECT version FROM arms WHERE ns = ? AND sha256 = ?", (self._ns, digest)).fetchone()
            if row is None:
                conn.execute("UPDATE namespaces SET last_arm_set = last_arm_set + 1 WHERE ns = ?", (self._ns,))
                version: int = conn.execute("SELECT last_arm_set FROM namespaces WHERE ns = ?", (self._ns,)).fetchone()[0]
                conn.execute(
                    "INSERT INTO arms (ns, version, time, sha256, names, vectors, costs) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (self._ns, version, self._clock(), digest, listed, vectors, costs),
                )
            else:
                version = row[0]
                conn.execute("UPDATE arms SET time = ? WHERE ns = ? AND version = ?", (self._clock(), self._ns, version))
            conn.execute("UPDATE namespaces SET arm_set = ? WHERE ns = ?", (version, self._ns))
        return version

    def arms(self, version: SupportsIndex) -> tuple[tuple[str, ...], Blob, Blob] | None:
        """(names, vectors, costs) of an arm set; None when the version is unknown or was pruned.

        Raises
        ------
        SonaCorruptError
            The arm set does not match its checksum.
        """
        with self._db.reading() as conn:
            row = conn.execute(
                "SELECT sha256, names, vectors, costs FROM arms WHERE ns = ? AND version = ?", (self._ns, id_of(version))
            ).fetchone()
        if row is None:
            return None
        digest, listed, vectors, costs = row
        if digest != arms_digest(listed, vectors, costs):
            raise SonaCorruptError(f"{self.path}: arm set {version} does not match its checksum")
        return tuple(json.loads(listed)), vectors, costs

    def latest_arms(self) -> tuple[int, tuple[str, ...], Blob, Blob] | None:
        """(version, names, vectors, costs) of the arm set put last; None before the first."""
        with self._db.reading() as conn:
            version: int = conn.execute("SELECT arm_set FROM namespaces WHERE ns = ?", (self._ns,)).fetchone()[0]
            found = self.arms(version)
        return None if found is None else (version, *found)

    # -- versions --------------------------------------------------------------------------------------------------

    def put_version(self, name: str, row: VersionRow, *, spare: int | None = None) -> int:
        """Keep a version; durable on return. Returns its number, from 1 on, which no other version of that name has or had.

        The newest 20, the published one and number `spare` are kept, older ones are deleted. Takes the learning lease when it is free.

        Raises
        ------
        SonaStoreError
            Another store holds the lease, or the write failed; nothing has changed.
        """
        check_name("state name", name)
        (row,) = rows_of(VersionRow, [row])
        with self._leading(None) as conn:
            newest = conn.execute("SELECT max(number) FROM versions WHERE ns = ? AND name = ?", (self._ns, name)).fetchone()[0]
            number: int = max(newest or 0, self._counter(conn, f"versions:{name}")) + 1
            content = (name, number, row.parent, row.time, row.verdict, row.reason, row.about, row.factors)
            conn.execute(
                "INSERT INTO versions (ns, sha256, name, number, parent, time, verdict, reason, about, factors)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (self._ns, version_digest(*content), *content),
            )
            conn.execute(
                "DELETE FROM versions WHERE ns = ? AND name = ? AND number <= ? AND NOT published AND number <> ?",
                (self._ns, name, number - VERSIONS_KEPT, -1 if spare is None else spare),
            )
            self._changed(conn)
        return number

    def versions(self, name: str) -> list[tuple[int, VersionRow]]:
        """(number, version) of that name, oldest first.

        Raises
        ------
        SonaCorruptError
            One does not match its checksum.
        """
        with self._db.reading() as conn:
            found = conn.execute(
                "SELECT sha256, name, number, parent, time, verdict, reason, about, factors FROM versions"
                " WHERE ns = ? AND name = ? ORDER BY number",
                (self._ns, name),
            ).fetchall()
        result = []
        for digest, *content in found:
            if digest != version_digest(*content):
                raise SonaCorruptError(f"{self.path}: version {content[1]} of {name!r} does not match its checksum")
            result.append((content[1], VersionRow(*content[2:])))
        return result

    def published(self, name: str) -> int | None:
        """Number of the published version of that name; None before the first."""
        with self._db.reading() as conn:
            row = conn.execute("SELECT number FROM versions WHERE ns = ? AND name = ? AND published", (self._ns, name)).fetchone()
        return None if row is None else row[0]

    def _publish(self, conn: Sql, name: str, number: int) -> None:
        self._granted(conn, name, number)
        conn.execute("UPDATE versions SET published = FALSE WHERE ns = ? AND name = ? AND published", (self._ns, name))
        one = conn.execute("UPDATE versions SET published = TRUE WHERE ns = ? AND name = ? AND number = ?", (self._ns, name, number))
        if one.rowcount != 1:
            raise SonaStoreError(f"{self.path}: there is no version {number} of {name!r}")
