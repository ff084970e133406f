"""Ranker: a query finds documents, and the clicks on what was shown move queries and documents towards each other."""

import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np
import numpy.typing as npt

from sona._arrays import Floats, unit_rows
from sona._fields import whole
from sona._kernels import Kernels
from sona._locks import lock
from sona._vector import checked
from sona.config import SonaConfig
from sona.engine import SonaEngine, Store
from sona.errors import SonaClosedError, SonaTypeError, SonaValueError, SonaVersionError
from sona.ranker.clicks import Examination
from sona.ranker.documents import DocumentId, Documents, checked_id, given_documents, mean_norm
from sona.ranker.guard import Guard, draft
from sona.ranker.learning import Beside, Clicks, Shown
from sona.store import load_snapshot

# Measured on Debian's package descriptions, seeds 0 to 4: see docs/ranker.md.
STEP = 0.2  # of the query's correction
RANK = 16
SHARED = 0.1  # of the requests get a list of both orders


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """
    What was found for a query.

    Attributes
    ----------
    id : int
        That `Ranker.clicked` takes.
    documents : tuple
        Ids, best first.
    scores : float32 array of shape (k,)
        Of the order that serves; on a shared list (`order` is "shared") they may go up and down.
    propensities : float32 array of shape (k,)
        Chance that a user looks at each place.
    order : {"learned", "frozen", "shared"}
        Whose order it is.
    """

    id: int
    documents: tuple[Any, ...]
    scores: Floats
    propensities: Floats
    order: str


class Ranker:
    """
    Ranks documents by cosine similarity with a query, and learns from clicks on what it showed.

    A click moves two things: the query, by a linear map that all queries share, and the documents of the list, each by a vector of its own.

    Parameters
    ----------
    documents : mapping or array
        id -> vector, or an array (n, dim) with `ids`. An id is a str or an int. Not kept in the store: give them again after a restart.
    ids : sequence, optional
        Of the rows of an array; default their numbers.
    dim : int, optional
        Length of a vector; needed where there are no documents yet.
    examination : float or sequence of float
        How likely a user looks at a place of the list: 1 / rank^examination, or the probabilities themselves from the first place on.
    guard : bool
        Let frozen and learned order share a tenth of the lists, and serve the frozen one while users click more on its documents.
    normalize : bool
        Scale vectors to unit norm; False keeps the documents' relative norms.
    store : path, URL or store, optional
        Keeps clicks and what was learned; None keeps it in memory.
    pending : int
        Rankings that wait for their clicks; of older ones clicks are answered with False.
    seed : int
        Of the draws which lists are shared.
    name : str
        Under which the state is kept in the store.
    model_fingerprint : str, optional
        Identifies the embedding model; a stored state of another one is refused.

    Attributes
    ----------
    engine : SonaEngine
        The engine underneath; its layer is what moves the query. Switched off (``enabled = False``), the order is the frozen one.

    Raises
    ------
    SonaValueError, SonaTypeError
        Vectors that are not finite or of different lengths, ids given twice, or options out of range.

    Thread-safety
    -------------
    Every method may be called from any thread. `rank` waits for nobody; the others take turns.

    Notes
    -----
    A list of one document teaches nothing: a click says which of the shown ones is better.
    """

    def __init__(
        self,
        documents: Mapping[Any, Any] | npt.NDArray[Any] | Sequence[Any],
        ids: Sequence[Any] | None = None,
        *,
        dim: int | None = None,
        examination: float | Sequence[float] = 1.0,
        guard: bool = True,
        normalize: bool = True,
        store: Store = None,
        pending: int = 8192,
        seed: int = 0,
        name: str = "default",
        model_fingerprint: str | None = None,
    ) -> None:
        names, vectors = given_documents(documents, ids, dim)
        if whole(pending, "pending") < 1:
            raise SonaValueError(f"pending: expected at least 1, got {pending}")
        self._examination = Examination(examination)
        self._normalize, self._scale = normalize, mean_norm(vectors)
        self._kernels = Kernels()
        self._documents = Documents(vectors.shape[1])
        self._documents.add(names, self._prepared(vectors))
        self._guarded, self._guard = bool(guard), Guard()
        self._random = Random(whole(seed, "seed"))
        self._shown: OrderedDict[int, Shown] = OrderedDict()
        self._pending = pending
        self._mutex = lock()  # held while a click is learned
        self._unknown = 0
        config = SonaConfig(
            hidden_dim=vectors.shape[1], base_lora_rank=RANK, base_lora_rank_max=RANK, max_discard=0.5, p0=STEP, precondition="identity"
        )
        self.engine = SonaEngine(
            config, store=store, name=name, model_fingerprint=model_fingerprint, beside=Beside(self._documents, self._guard)
        )
        self._clicks = Clicks(self.engine, self._documents, self._guard)
        self._first = (self.engine.session << 40) + 1
        self._numbers = count(self._first)
        self._ranked = 0

    def _prepared(self, vectors: Floats) -> Floats:
        """At the norm that is served."""
        return unit_rows(vectors) if self._normalize else vectors / np.float32(self._scale)

    # ---- documents ----

    def __len__(self) -> int:
        return len(self._documents)

    def __contains__(self, id: object) -> bool:
        return id in self._documents

    def add(self, documents: Mapping[Any, Any] | npt.NDArray[Any] | Sequence[Any], ids: Sequence[Any] | None = None) -> None:
        """
        Serve these documents from the next request on; one that is here gets its new vector and keeps what clicks taught about it.

        Parameters
        ----------
        documents, ids
            As of the class; an array needs its ids here.
        """
        self._check_open()
        if not isinstance(documents, Mapping) and ids is None:
            raise SonaValueError("ids: expected one per row, got None")
        names, vectors = given_documents(documents, ids, self._documents.dim)
        self._documents.add(names, self._prepared(vectors))

    def remove(self, id: DocumentId) -> None:
        """Serve a document no more; SonaValueError where it is not here. What clicks taught about it is there again if it comes back."""
        self._check_open()
        self._documents.remove(checked_id(id))

    # ---- requests ----

    def rank(self, query: Any, k: int = 10, *, candidates: Sequence[DocumentId] | None = None) -> Ranking:
        """
        The k documents that answer a query best, best first.

        Parameters
        ----------
        query : array of shape (dim,)
            Any norm; finite.
        k : int
            Fewer come back where there are fewer, or where some of them are removed meanwhile.
        candidates : sequence of ids, optional
            Rank these only, of an index that found them before; ids that are not here are left out. Default all, by an exact scan.

        Raises
        ------
        SonaValueError, SonaTypeError
            A query of another shape or not finite, or k below 1. Nothing is remembered.
        """
        self._check_open()
        if (k if type(k) is int else whole(k, "k")) < 1:
            raise SonaValueError(f"k: expected at least 1, got {k}")
        x = self._unit(checked(query, self._documents.dim, "query"))
        enabled = self.engine.enabled
        shared = enabled and self._guarded and self._random.random() < SHARED
        frozen = not enabled or (self._guarded and self._guard.serves_frozen)
        teams: list[int] | None = None
        found, scores = self._best(x, k, candidates, frozen=frozen and not shared)
        if shared:
            found, teams = draft(found, self._best(x, k, candidates, frozen=True)[0], k, self._random)
            if any(teams):
                team_of = dict(zip(found, teams, strict=True))
                found, scores = self._scores(x, found, frozen=False)
                teams = [team_of[document] for document in found]  # some may have been removed meanwhile
            else:  # both orders are the same: nothing to share
                teams = None
        documents = tuple(found)
        propensities = self._examination(len(documents))
        number = next(self._numbers)
        self._shown[number] = Shown(x, documents, propensities, teams)
        while len(self._shown) > self._pending:
            self._shown.popitem(last=False)
        self._ranked += 1
        order = "shared" if teams is not None else "frozen" if frozen and not shared else "learned"
        return Ranking(id=number, documents=documents, scores=scores, propensities=propensities, order=order)

    def _unit(self, query: Floats) -> Floats:
        square = self._kernels.dot(query, query)
        if 1e-30 < square < 1e30:  # else float32 may not hold it
            return query * np.float32(square**-0.5)
        return unit_rows(query)

    def _best(self, x: Floats, k: int, candidates: Sequence[DocumentId] | None, *, frozen: bool) -> tuple[list[DocumentId], Floats]:
        if candidates is None:
            return self._documents.top(x if frozen else self.engine.apply(x), k, frozen=frozen)
        found, scores = self._scores(x, list(dict.fromkeys(map(checked_id, candidates))), frozen=frozen)
        order = np.argsort(-scores, kind="stable")[:k]
        return [found[place] for place in order.tolist()], scores[order]

    def _scores(self, x: Floats, ids: Sequence[DocumentId], *, frozen: bool) -> tuple[list[DocumentId], Floats]:
        """Those of `ids` that are here, and their scores."""
        places, vectors = self._documents.rows_of(ids, frozen=frozen)
        scores: Floats = vectors @ (x if frozen else self.engine.apply(x))
        return [ids[place] for place in places], scores

    # ---- outcomes ----

    def clicked(self, id: int, document: DocumentId, *, sync: bool = False) -> bool:
        """
        A user clicked on a document of a ranking: now or later, once or again, which changes nothing.

        Parameters
        ----------
        id : int
            Of the ranking.
        document : str or int
            One that it showed.
        sync : bool
            Return only when the click is durable in the store.

        Returns
        -------
        bool
            False, and counted, when the ranking is unknown or too long ago, or the document has been removed since.

        Raises
        ------
        SonaValueError
            The ranking did not show that document.
        SonaStoreError
            With sync=True: the store could not be written; the click is learned and will be tried again.
        """
        return self._take(whole(id, "id"), [document], sync, more=True)

    def feedback(self, id: int, clicks: Iterable[DocumentId], *, sync: bool = False) -> bool:
        """
        All clicks on a ranking, none included: clicks that were reported before and are not among these are taken back.

        See `clicked`; documents that have been removed since are passed over.
        """
        if isinstance(clicks, str | bytes):
            raise SonaTypeError(f"clicks: expected ids of documents, got {clicks!r}")
        return self._take(whole(id, "id"), list(clicks), sync, more=False)

    def _take(self, id: int, clicks: Sequence[DocumentId], sync: bool, *, more: bool) -> bool:
        """These are clicks on the list, beside those of before (`more`) or in their place."""
        clicks = [checked_id(each) for each in clicks]
        self._check_open()
        if self.engine.journal is not None:
            self.engine.journal.check_open()
        with self._mutex:
            shown = self._shown.get(id)
            if shown is None:
                self._unknown += 1
                return False
            for document in clicks:
                if document not in shown.documents:
                    raise SonaValueError(f"ranking {id}: expected one of the documents that it showed, got {document!r}")
            known = [each for each in clicks if each in shown.clicks or each in self._documents]
            if more and not known:
                self._unknown += 1
                return False
            self._clicks.put(shown, [*shown.clicks, *known] if more else known)
        if sync and self.engine.journal is not None:
            self.engine.journal.flush()
        return True

    # ---- state ----

    def stats(self) -> dict[str, Any]:
        """Counters by name; "wins" are those of (learned, frozen) on shared lists, "engine" the engine's counters."""
        return {
            "documents": len(self._documents),
            "corrected": self._documents.corrected,
            "rankings": self._ranked,
            "clicks": self._clicks.count,
            "unknown_feedback": self._unknown,
            "serves_frozen": not self.engine.enabled or (self._guarded and self._guard.serves_frozen),
            "wins": tuple(self._guard.wins),
            "pending": len(self._shown),
            "documents_bytes": self._documents.nbytes,
            "engine": self.engine.stats(),
        }

    def tick(self) -> None:
        """See `SonaEngine.tick`."""
        with self._mutex:
            self.engine.tick()

    def flush(self) -> None:
        """Return when every click so far is durable."""
        with self._mutex:
            self.engine.flush()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything learned to a snapshot directory, without the documents' vectors; the one before is kept beside it."""
        with self._mutex:
            self.engine.save(path)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        documents: Mapping[Any, Any] | npt.NDArray[Any] | Sequence[Any],
        ids: Sequence[Any] | None = None,
        *,
        model_fingerprint: str | None = None,
        **options: Any,
    ) -> Self:
        """
        A ranker from a snapshot directory; `documents`, `ids` and `options` as of the class.

        Raises
        ------
        SonaCorruptError, SonaVersionError
            The files are damaged, of a newer format, of another model than `model_fingerprint`, or no ranker's of that dim.
        """
        arrays, _ = load_snapshot(path, fingerprint=model_fingerprint)
        if "beside.keys" not in arrays:
            raise SonaVersionError(f"{os.fspath(path)}: expected the snapshot of a ranker, got that of an engine")
        ranker = cls(documents, ids, model_fingerprint=model_fingerprint, **options)
        try:
            ranker.engine.restore(arrays)
        except BaseException:
            ranker.close()
            raise
        return ranker

    # ---- end ----

    def close(self) -> None:
        """Write what is left and release the store; a second call does nothing."""
        with self._mutex:
            self.engine.close()

    def _check_open(self) -> None:
        if self.engine._closed:
            raise SonaClosedError(f"the ranker {self.engine._closed_because}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise SonaTypeError(
            f"{self!r}: expected save(path) and load(path), or a store, for a copy of what is learned; it cannot be pickled"
        )

    def __repr__(self) -> str:
        return f"<Ranker {len(self)} documents, dim={self._documents.dim}>"
