"""The vectors of a state: one row each, so that one more does not write all of them, and the nearest to a given one."""

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from sona._arrays import Floats, coerce
from sona.errors import SonaValueError
from sona.store.arguments import check_count, check_name
from sona.store.namespace import Namespace
from sona.store.rows import Blob

Some = tuple[list[int], list[Blob]]  # ids and vectors


class Vectors(Namespace):
    """The methods of a store for vectors; `put_state` writes them."""

    def vectors_of(self, name: str) -> Iterator[tuple[int, Blob]]:
        """(id, bytes) of the vectors that were put with the state of that name, by id; those that are damaged are left out."""
        last = -1
        while True:
            with self._db.reading() as conn:
                rows = self._vectors_after(conn, name, last)
            if not rows:
                return
            last = rows[-1][0]
            yield from ((id, vector) for id, crc, vector in rows if crc == zlib.crc32(vector))

    def nearest(self, name: str, x: npt.ArrayLike, k: int = 10) -> list[tuple[int, float]]:
        """
        The vectors most similar to x that were put with the state of that name.

        Parameters
        ----------
        x : array (d,)
            Finite, not zero. Vectors of another length than 4 d bytes, little-endian float32, are left out, and so are zero, non-finite
            and damaged ones.
        k : int

        Returns
        -------
        list of (int, float)
            At most k (id, cosine similarity), most similar first.
        """
        check_count("k", k)
        query = coerce(x, (None,), "x").astype(np.float64)
        length = float(np.linalg.norm(query))
        if not length > 0:
            raise SonaValueError("x: expected a vector other than zero, which is similar to nothing")
        query /= length
        best: list[tuple[float, int]] = []
        for ids, vectors in self._candidates(name, query.astype(np.float32), k):
            matrix = np.frombuffer(b"".join(vectors), "<f4").reshape(len(ids), len(query)).astype(np.float64)
            with np.errstate(invalid="ignore", divide="ignore"):
                similar = (matrix * query).sum(axis=1) / np.linalg.norm(matrix, axis=1)
            best += [(-float(s), id) for s, id in zip(similar, ids, strict=True) if np.isfinite(s)]
            best = sorted(best)[:k]
        return [(id, -s) for s, id in best]

    def index_vectors(self, name: str, dim: int) -> bool:
        """False: `nearest` compares all vectors of a file."""
        check_name("state name", name)
        check_count("dim", dim)
        return False

    def _candidates(self, name: str, query: Floats, k: int) -> Iterator[Some]:
        """Vectors of the query's length among which are the k nearest."""
        last, size = -1, 4 * len(query)
        while True:
            with self._db.reading() as conn:
                rows: list[Any] = self._vectors_after(conn, name, last)
            if not rows:
                return
            last = rows[-1][0]
            sound = [(id, vector) for id, crc, vector in rows if len(vector) == size and crc == zlib.crc32(vector)]
            if sound:
                yield [id for id, _ in sound], [vector for _, vector in sound]
