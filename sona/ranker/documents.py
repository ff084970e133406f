"""Documents by id: their vectors as given, and as served with what clicks have taught about each."""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sona._arrays import Floats, coerce
from sona._fields import whole
from sona._kernels import Kernels
from sona._locks import lock
from sona.errors import SonaTypeError, SonaValueError
from sona.trajectory._record import decode

DocumentId = str | int

STRENGTH = 0.1  # of a correction, measured: docs/ranker.md
SCANS = 8  # again where documents that were found had been removed by the end of the scan
CORRECTED = 8192  # documents that have a correction; of more, the ones that no list has moved for longest lose theirs

_PACKED = 4  # floats a document: its key in three, which each hold exactly, and its coefficient


def key_of(id: DocumentId) -> int:
    """64 bits that stand for an id in records and states; text and numbers differ."""
    return int.from_bytes(hashlib.blake2b(f"{type(id).__name__}:{id}".encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def checked_id(id: Any) -> DocumentId:
    """A str or an int; SonaTypeError for anything else."""
    if isinstance(id, str):
        return str(id)
    try:
        number: int = whole(id, "document")
    except SonaTypeError:
        raise SonaTypeError(f"document: expected a str or an int as id, got {type(id).__name__}") from None
    return number


def given_documents(
    documents: Mapping[Any, Any] | npt.NDArray[Any] | Sequence[Any], ids: Sequence[Any] | None, dim: int | None
) -> tuple[list[DocumentId], Floats]:
    """Ids and vectors (n, dim) of what a caller passes as documents."""
    if isinstance(documents, Mapping):
        if ids is not None:
            raise SonaValueError("ids: expected None with a mapping, whose keys they are")
        ids, documents = list(documents), list(documents.values())
    if len(documents) == 0:
        if dim is None or whole(dim, "dim") < 1:
            raise SonaValueError(f"dim: expected at least 1 where there are no documents yet, got {dim!r}")
        return [], np.empty((0, dim), np.float32)
    vectors = coerce(documents, (None, dim), "documents")
    names: list[DocumentId] = list(range(len(vectors))) if ids is None else [checked_id(id) for id in ids]
    if len(names) != len(vectors):
        raise SonaValueError(f"ids: expected one per row of {len(vectors)}, got {len(names)}")
    return names, vectors


def mean_norm(vectors: Floats) -> float:
    """1 where there are none."""
    norm = float(np.linalg.norm(vectors.astype(np.float64), axis=1).mean()) if len(vectors) else 0.0
    return norm or 1.0


def pack(keys: Sequence[int], gradient: npt.NDArray[np.float64]) -> Floats:
    """What a click says of documents, as numbers that a trajectory step can carry."""
    rows = [(key >> 40, key >> 16 & 0xFFFFFF, key & 0xFFFF, STRENGTH * g) for key, g in zip(keys, gradient, strict=True)]
    return np.array(rows, np.float32).ravel()


def unpack(packed: Floats) -> list[tuple[int, float]]:
    """(key, coefficient) of each document."""
    rows = packed.reshape(-1, _PACKED).tolist()
    return [(int(a) << 40 | int(b) << 16 | int(c), coefficient) for a, b, c, coefficient in rows]


@dataclass(frozen=True, slots=True)
class _Rows:
    """Arrays that only grow at the end: whoever holds them may read the first len(ids) rows for ever. A removed row is NaN and None."""

    ids: list[DocumentId | None]
    keys: list[int]
    given: Floats  # (capacity, dim)
    served: Floats


class Documents:
    """
    Vectors of documents, each with a correction that clicks add to.

    Parameters
    ----------
    dim : int

    Thread-safety
    -------------
    `top`, `rows_of` and reading: any. What changes something takes turns. A scan that runs while a click is learned may find some documents
    as they were before it and some as they are after it; each number is one or the other.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._kernels = Kernels()
        self._mutex = lock(brief=True)
        self._row_of: dict[DocumentId, int] = {}
        self._row_of_key: dict[int, int] = {}
        self._corrections: OrderedDict[int, Floats] = OrderedDict()
        self._rows = _Rows([], [], np.empty((0, dim), np.float32), np.empty((0, dim), np.float32))

    def __len__(self) -> int:
        return len(self._row_of)

    def __contains__(self, id: object) -> bool:
        return id in self._row_of

    @property
    def corrected(self) -> int:
        """Documents with a correction, also of those that are not here."""
        return len(self._corrections)

    @property
    def nbytes(self) -> int:
        """Of vectors and corrections."""
        return self._rows.given.nbytes + self._rows.served.nbytes + 4 * self.dim * len(self._corrections)

    def add(self, ids: Sequence[DocumentId], vectors: Floats) -> None:
        """
        Serve these from now on; a document that was here gets its new vector and keeps what clicks taught about it.

        Parameters
        ----------
        vectors : array of shape (n, dim)
        """
        if len(set(ids)) != len(ids):
            raise SonaValueError("documents: expected each id once, got one again")
        with self._mutex:
            for id in ids:
                if id in self._row_of:
                    self._drop(id)
            rows = self._room(len(ids))
            for id, vector in zip(ids, vectors, strict=True):
                row, key = len(rows.ids), key_of(id)
                rows.given[row] = vector
                correction = self._corrections.get(key)
                rows.served[row] = vector if correction is None else vector + correction
                rows.keys.append(key)
                self._row_of[id] = self._row_of_key[key] = row
                rows.ids.append(id)  # last: from now on a scan sees it

    def remove(self, id: DocumentId) -> None:
        """Serve it no more. What clicks taught about it comes back if it does."""
        with self._mutex:
            if id not in self._row_of:
                raise SonaValueError(f"document: expected one of those that are here, got {id!r}")
            self._drop(id)

    def _drop(self, id: DocumentId) -> None:
        rows, row = self._rows, self._row_of.pop(id)
        del self._row_of_key[rows.keys[row]]
        rows.ids[row] = None
        rows.given[row] = rows.served[row] = np.nan

    def _room(self, more: int) -> _Rows:
        """The rows, with room for more at the end; without the removed ones where they had to be moved."""
        old = self._rows
        if len(old.ids) + more <= len(old.given):
            return old
        kept = [row for row, id in enumerate(old.ids) if id is not None]
        size = max(len(kept) + more, min(2 * len(kept), len(kept) + 65536))
        given, served = (np.empty((size, self.dim), np.float32) for _ in range(2))
        given[: len(kept)], served[: len(kept)] = old.given[kept], old.served[kept]
        ids = [old.ids[row] for row in kept]
        self._row_of = {id: row for row, id in enumerate(ids) if id is not None}
        self._row_of_key = {old.keys[before]: row for row, before in enumerate(kept)}
        self._rows = _Rows(ids, [old.keys[row] for row in kept], given, served)
        return self._rows

    # ---- requests ----

    def top(self, y: Floats, k: int, *, frozen: bool = False) -> tuple[list[DocumentId], Floats]:
        """Ids and scores of the k documents with the largest <y, vector>, best first; y (dim,). Releases the GIL while it scans."""
        for _ in range(SCANS):
            rows = self._rows
            index, scores = self._kernels.top_k((rows.given if frozen else rows.served)[: len(rows.ids)], y, k)
            ids = [rows.ids[row] for row in index.tolist()]
            if None not in ids:
                return ids, scores
        kept = [place for place, id in enumerate(ids) if id is not None]  # the others were removed while the last scan ran
        return [id for id in ids if id is not None], scores[kept]

    def rows_of(self, ids: Sequence[DocumentId], *, frozen: bool = False) -> tuple[list[int], Floats]:
        """Which of `ids` are here, as places in `ids`, and their vectors, (n, dim)."""
        with self._mutex:
            places = [place for place, id in enumerate(ids) if id in self._row_of]
            vectors = self._rows.given if frozen else self._rows.served
            return places, vectors[[self._row_of[ids[place]] for place in places]]

    # ---- what clicks teach ----

    def learn(self, record: bytes, change: float) -> None:
        """Add `change` times what the click of a recorded trajectory says to the documents it names."""
        trajectory = decode(record)
        for step in trajectory.steps:
            if step.attention_weights is not None and len(step.attention_weights) % _PACKED == 0:
                with self._mutex:
                    for key, coefficient in unpack(step.attention_weights):
                        self._correct(key, np.float32(change * coefficient) * trajectory.query_embedding)

    def _correct(self, key: int, more: Floats) -> None:
        before = self._corrections.pop(key, None)
        self._put(key, more if before is None else before + more)
        while len(self._corrections) > CORRECTED:
            oldest, _ = self._corrections.popitem(last=False)
            self._serve(oldest, None)

    def _put(self, key: int, correction: Floats) -> None:
        self._corrections[key] = correction
        self._serve(key, correction)

    def _serve(self, key: int, correction: Floats | None) -> None:
        row = self._row_of_key.get(key)
        if row is not None:
            given = self._rows.given[row]
            self._rows.served[row] = given if correction is None else given + correction

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Arrays that `restore` takes."""
        with self._mutex:
            keys = np.array(list(self._corrections), np.uint64)
            vectors = np.array(list(self._corrections.values()), np.float32).reshape(len(keys), self.dim)
        return {"keys": keys, "corrections": vectors}

    def restore(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Put back what `state` returned, or nothing; SonaValueError, and nothing changes, for anything else."""
        keys = np.asarray(arrays.get("keys", np.empty(0, np.uint64)))
        vectors = np.asarray(arrays.get("corrections", np.empty((0, self.dim), np.float32)))
        if keys.ndim != 1 or vectors.shape != (len(keys), self.dim) or not np.isfinite(vectors).all():
            raise SonaValueError(f"documents: expected finite corrections ({len(keys)}, {self.dim}), got shape {vectors.shape}")
        with self._mutex:
            before, self._corrections = self._corrections, OrderedDict()
            for key in before:
                self._serve(key, None)
            for key, vector in zip(keys.tolist(), vectors.astype(np.float32), strict=True):
                self._put(int(key), vector)
