"""What a graph says about its nodes: message passing, in closed form or with learned weights, and which links it proposes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from sona._arrays import Floats, coerce
from sona.errors import SonaTypeError, SonaValueError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MAX_HOPS = 64
BLOCK = 1 << 22  # two-step walks counted at a time: some 50 MB
HALF = 0.25  # exponent of the degrees in `proposals`, half of the symmetric normalisation; swept on seeds 0 to 11, docs/links.md


def propagate(csr: Any, seed: Any, hops: int = 3, alpha: float = 0.85) -> Floats:
    """
    Message passing in closed form: p = seed, then `hops` times p <- (1 - alpha) seed + alpha D^-1/2 A D^-1/2 p.

    Personalised PageRank in its symmetric form, cut off after some hops (APPNP: Gasteiger, Bojchevski and Guennemann 2019). A node without
    edges keeps its seed.

    Parameters
    ----------
    csr : Csr or scipy sparse matrix (n, n)
        Symmetric weights >= 0; the diagonal is ignored.
    seed : array (n,) or (n, c)
        What is known, in any unit; each column by itself.
    hops : int
        0 to 64. 0 gives the seed back.
    alpha : float
        In [0, 1): the share that comes from the neighbours.

    Returns
    -------
    float32 array like seed

    Raises
    ------
    SonaValueError, SonaTypeError
        A matrix that is not square and symmetric or has a negative weight, another shape, NaN or infinity, hops or alpha out of range.
    """
    step = _Step(_matrix(csr), np.float32)
    s = coerce(seed, (len(step),) if np.ndim(seed) == 1 else (len(step), None), "seed")
    if not (isinstance(alpha, int | float) and 0 <= alpha < 1):
        raise SonaValueError(f"alpha: expected a number in [0, 1), got {alpha!r}")
    p, rate = s, np.float32(alpha)
    for _ in range(_hops(hops, 0)):
        p = (1 - rate) * s + rate * (step @ p)
    return p.copy() if p is s else p


def proposals(csr: Any, starts: Any, k: int = 8, *, limit: int | None = None) -> tuple[Ints, Ints, Floats]:
    """
    The links that are most likely missing, by the two-step walks between nodes that are not joined.

    score(u, v) = sum_z A_uz A_zv / d_z, over (d_u d_v)^1/4, d the sums of weights. This is resource allocation (Zhou, Lu and Zhang 2009)
    with weights, half way to the symmetric walk D^-1/2 A D^-1 A D^-1/2: it predicted hidden links of three kinds of graphs better than
    either, than longer walks and than dreams (docs/links.md).

    Parameters
    ----------
    csr : Csr or scipy sparse matrix (n, n)
        Symmetric weights >= 0; the diagonal is ignored.
    starts : int array (w,)
        Positions from which links are proposed, each once.
    k : int
        Proposals for each start, at most: nodes at a distance of two, the best.
    limit : int, optional
        Proposals in all, at most, the best.

    Returns
    -------
    u, v : int64 arrays (m,)
        Pairs of positions, u < v, each once, best first; equal scores in the order of u, then of v.
    score : float32 array (m,)
        > 0, in units of the square root of a weight.

    Raises
    ------
    SonaValueError, SonaTypeError
        As `propagate`; starts that are no ints in [0, n) or come twice; k or limit below 1.

    Notes
    -----
    Time and memory grow with the two-step walks from the starts, with a degree of at most g less than w g^2; memory is bounded by blocks.
    """
    matrix = _matrix(csr)
    n = matrix.shape[0]
    start = _positions(starts, n, "starts")
    if len(np.unique(start)) != len(start):
        raise SonaValueError("starts: expected each position once")
    for name, value in (("k", k), ("limit", limit)):
        if not (value is None and name == "limit") and (type(value) is not int or value < 1):
            raise SonaValueError(f"{name}: expected an int of at least 1, got {value!r}")
    degree = _sums(matrix)
    first = _scaled(matrix, _power(degree, -HALF), np.ones(n))  # A_uz / d_u^1/4
    second = _scaled(matrix, _power(degree, -1.0), _power(degree, -HALF))  # A_zv / (d_z d_v^1/4)
    found = [_best(first[start[block]], second, start[block], k) for block in _blocks(matrix, start)]
    u, v, score = (np.concatenate(part) for part in zip(*found, strict=True)) if found else _nothing()
    pair, at = np.unique(np.minimum(u, v) * n + np.maximum(u, v), return_index=True)
    order = np.lexsort((pair, -score[at]))[:limit]
    return pair[order] // n, pair[order] % n, score[at][order]


def _nothing() -> tuple[Ints, Ints, Floats]:
    return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)


def _blocks(matrix: csr_matrix, start: Ints) -> list[slice]:
    """Consecutive starts with about BLOCK two-step walks together, at least one start each."""
    lengths = np.diff(matrix.indptr).astype(np.int64)
    reach = np.concatenate([[0], np.cumsum(lengths[matrix.indices])])
    walks = np.cumsum(reach[matrix.indptr[start + 1]] - reach[matrix.indptr[start]])
    cuts = np.flatnonzero(np.diff(walks // BLOCK)) + 1
    return [slice(a, b) for a, b in zip([0, *cuts.tolist()], [*cuts.tolist(), len(start)], strict=True) if a < b]


def _best(first: csr_matrix, second: csr_matrix, start: Ints, k: int) -> tuple[Ints, Ints, Floats]:
    """The k best of each start, whose rows `first` holds: nodes two steps away that are neither itself nor joined to it."""
    n = second.shape[0]
    walks = first @ second
    row, column = _cells(walks)
    if not len(row):
        return _nothing()
    (near, neighbour), pair = _cells(first), row * n + column
    joined = near * n + neighbour  # ascending
    place = np.searchsorted(joined, pair).clip(max=len(joined) - 1)
    new = (column != start[row]) & (joined[place] != pair)
    row, column, score = row[new], column[new], walks.data[new]
    order = np.lexsort((column, -score, row))
    row, column, score = row[order], column[order], score[order]
    top = np.arange(len(row)) - np.searchsorted(row, np.arange(len(start)))[row] < k
    return start[row[top]], column[top], score[top]


def _cells(matrix: csr_matrix) -> tuple[Ints, Ints]:
    """Row and column of each entry, int64."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr)), matrix.indices.astype(np.int64)


class Propagation:
    """
    Message passing with learned weights: a graph neural network of one weight a hop and one a kind of edge.

    P(target of a cell is 1) = sigmoid(bias + trust offset + sum_k hop_k S^k seed), S = sum over kinds of share D^-1/2 A D^-1/2. This is
    generalised PageRank (Chien, Peng, Li and Milenkovic 2021), with shares of the kinds that sum to 1 and without the seed itself. The
    weights are fitted by penalised maximum likelihood with L-BFGS: nothing is random, and few weights need few targets.

    Parameters
    ----------
    hops : int
        1 to 64.
    l2 : float
        >= 0: penalty of the weights per target, where each hop counts in units of its root mean square.
    steps : int
        Iterations of the fit, at most.

    Attributes
    ----------
    hop : (hops,) float64
        Weight of each hop, from the first.
    share : (kinds,) float64
        Of each kind of edge, > 0, their sum 1; empty before `fit`.
    trust, bias : float

    Thread-safety
    -------------
    `fit` is for one thread; any thread may call a fitted object.
    """

    def __init__(self, hops: int = 3, *, l2: float = 1e-3, steps: int = 200) -> None:
        if not (isinstance(l2, int | float) and 0 <= l2 < np.inf):
            raise SonaValueError(f"l2: expected a finite number >= 0, got {l2!r}")
        if type(steps) is not int or steps < 1:
            raise SonaValueError(f"steps: expected an int of at least 1, got {steps!r}")
        self.hops, self.l2, self.steps = _hops(hops, 1), float(l2), steps
        self.hop: Doubles = np.zeros(self.hops)
        self.share: Doubles = np.zeros(0)
        self.trust, self.bias = 1.0, 0.0

    def fit(self, kinds: Any, seed: Any, rows: Any, columns: Any, target: Any, offset: Any = None) -> Self:
        """
        Learn the weights from cells of which the outcome is known.

        Parameters
        ----------
        kinds : Csr, scipy sparse matrix (n, n), or a sequence of them
            One graph for each kind of edge, over the same nodes.
        seed : array (n, c)
            What the messages start from. It must not hold the outcome of a target: the first two hops would bring it back.
        rows, columns : int arrays (m,)
            The cells.
        target : array (m,)
            Their outcomes, in [0, 1].
        offset : array (m,), optional
            What is known about each of them otherwise, as a logit.

        Raises
        ------
        SonaValueError, SonaTypeError
            Graphs as for `propagate` or of different sizes, other shapes, cells out of range, a target outside [0, 1]. Nothing has changed.
        """
        steps = _steps(kinds)
        n = len(steps[0])
        s = coerce(seed, (n, None), "seed").astype(np.float64)
        row, column = _positions(rows, n, "rows"), _positions(columns, s.shape[1], "columns")
        if len(row) != len(column) or not len(row):
            raise SonaValueError(f"rows, columns: expected the same number of cells, at least one, got {len(row)} and {len(column)}")
        t = coerce(target, (len(row),), "target").astype(np.float64)
        if not (t.min() >= 0 and t.max() <= 1):
            raise SonaValueError(f"target: expected numbers in [0, 1], got {t.min():g} to {t.max():g}")
        known = np.zeros(len(row)) if offset is None else coerce(offset, (len(row),), "offset").astype(np.float64)
        loss = _Loss(steps, s, (row, column), t, known, self.hops, self.l2)
        from scipy.optimize import minimize

        found = minimize(loss, loss.start(), jac=True, method="L-BFGS-B", options={"maxiter": self.steps})
        hop, kind, (self.trust, self.bias) = loss.split(found.x)
        self.hop, self.share = hop / loss.scale, _softmax(kind)
        return self

    def __call__(self, kinds: Any, seed: Any, offset: Any = None) -> Floats:
        """
        Probability of each cell, (n, c) float32; the graph need not be the one of the fit, but must have as many kinds.

        Parameters
        ----------
        kinds : as for `fit`
        seed : array (n, c)
        offset : array (n, c), optional
            Logits.

        Raises
        ------
        SonaValueError, SonaTypeError
            As for `fit`; before `fit`.
        """
        steps = _steps(kinds)
        if len(steps) != len(self.share):
            raise SonaValueError(f"kinds: expected {len(self.share) or 'a fit before the first call and'} graphs, got {len(steps)}")
        h = coerce(seed, (len(steps[0]), None), "seed").astype(np.float64)
        z = np.full(h.shape, self.bias)
        if offset is not None:
            z += self.trust * coerce(offset, h.shape, "offset")
        for weight in self.hop:
            h = sum(share * (step @ h) for share, step in zip(self.share, steps, strict=True))
            z += weight * h
        return _sigmoid(z).astype(np.float32)

    def state(self) -> dict[str, np.ndarray[Any, Any]]:
        """The weights as arrays that safetensors can hold."""
        return {"hop": self.hop.copy(), "share": self.share.copy(), "rest": np.array([self.trust, self.bias])}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], *, l2: float = 1e-3, steps: int = 200) -> Self:
        """
        Go on where `state` was taken.

        Raises
        ------
        SonaValueError
            What is missing, of another shape or not finite; shares that are no shares.
        """
        hop, share, rest = (_read(state, name) for name in ("hop", "share", "rest"))
        if not 1 <= len(hop) <= MAX_HOPS or len(rest) != 2:
            raise SonaValueError(f"state: expected hop of 1 to {MAX_HOPS} and rest of 2 numbers, got {len(hop)} and {len(rest)}")
        if len(share) and not (share.min() >= 0 and abs(share.sum() - 1) < 1e-6):
            raise SonaValueError(f"state: expected shares >= 0 that sum to 1, got {share.tolist()}")
        one = cls(len(hop), l2=l2, steps=steps)
        one.hop, one.share, (one.trust, one.bias) = hop, share, rest.tolist()
        return one


class _Loss:
    """Mean log-loss of the cells plus l2 / 2 times the square of what is not the start, with its gradient."""

    def __init__(
        self, steps: list[_Step], seed: Doubles, cells: tuple[Ints, Ints], target: Doubles, offset: Doubles, hops: int, l2: float
    ) -> None:
        self.steps, self.seed, self.cells, self.target, self.offset, self.hops, self.l2 = steps, seed, cells, target, offset, hops, l2
        self._kind: Doubles | None = None
        self.scale: Doubles = np.ones(hops)
        features = self._walk(np.zeros(len(steps)))
        size = np.sqrt((features**2).mean(axis=0))
        self.scale = np.where(size > 0, size, 1.0)

    def start(self) -> Doubles:
        return np.concatenate([np.zeros(self.hops + len(self.steps)), [1.0, 0.0]])

    def split(self, at: Doubles) -> tuple[Doubles, Doubles, list[float]]:
        """Hop weights in units of `scale`, logits of the shares, [trust, bias]."""
        return at[: self.hops], at[self.hops : -2], at[-2:].tolist()

    def _walk(self, kind: Doubles) -> Doubles:
        """(cells, hops): what each hop brings to each cell; keeps what each kind brought to each hop for the gradient."""
        if self._kind is None or not np.array_equal(kind, self._kind):
            share, h = _softmax(kind), self.seed
            self._brought: list[list[Doubles]] = []
            columns = []
            for _ in range(self.hops):
                self._brought.append([step @ h for step in self.steps])
                h = sum((s * b for s, b in zip(share, self._brought[-1], strict=True)), np.zeros_like(h))
                columns.append(h[self.cells])
            self._kind, self._features = kind.copy(), np.stack(columns, axis=1)
        return self._features

    def __call__(self, at: Doubles) -> tuple[float, Doubles]:
        hop, kind, (trust, bias) = self.split(at)
        features = self._walk(kind) / self.scale
        z = features @ hop + trust * self.offset + bias
        error = (_sigmoid(z) - self.target) / len(z)
        away = at - self.start()
        away[-1] = 0.0  # the bias is free
        value = float(np.mean(np.logaddexp(0.0, z) - self.target * z) + self.l2 / 2 * (away @ away))
        gradient = np.concatenate([features.T @ error, self._by_kind(hop / self.scale, kind, error), [self.offset @ error, error.sum()]])
        return value, gradient + self.l2 * away

    def _by_kind(self, hop: Doubles, kind: Doubles, error: Doubles) -> Doubles:
        """Gradient by the logits of the shares: back through the hops."""
        if len(kind) == 1:
            return np.zeros(1)
        share, by_share = _softmax(kind), np.zeros(len(kind))
        direct, back = np.zeros_like(self.seed), np.zeros_like(self.seed)  # d loss / d sum of hops, d loss / d this hop
        np.add.at(direct, self.cells, error)
        for weight, brought in zip(hop[::-1], self._brought[::-1], strict=True):
            back = back + weight * direct
            by_share += [float((back * b).sum()) for b in brought]
            back = sum((s * (step @ back) for s, step in zip(share, self.steps, strict=True)), np.zeros_like(back))
        return share * (by_share - share @ by_share)


class _Step:
    """p -> D^-1/2 A D^-1/2 p of one graph; a node without edges keeps its value."""

    def __init__(self, matrix: csr_matrix, dtype: Any) -> None:
        degree = _sums(matrix)
        root = _power(degree, -0.5)
        self.matrix, self.alone = _scaled(matrix, root, root).astype(dtype), np.flatnonzero(degree == 0)

    def __len__(self) -> int:
        return int(self.matrix.shape[0])

    def __matmul__(self, p: Any) -> Any:
        q = self.matrix @ p
        q[self.alone] = p[self.alone]
        return q


def _steps(kinds: Any) -> list[_Step]:
    several = kinds if isinstance(kinds, Sequence) else [kinds]
    steps = [_Step(_matrix(one), np.float64) for one in several]
    if not steps or len({len(step) for step in steps}) != 1:
        raise SonaValueError(f"kinds: expected graphs over the same nodes, at least one, got sizes {[len(step) for step in steps]}")
    return steps


def _matrix(csr: Any) -> csr_matrix:
    """Compact float32 matrix without diagonal."""
    from scipy.sparse import csr_matrix, issparse

    if hasattr(csr, "matrix"):
        return csr.matrix()
    if not issparse(csr) and not isinstance(csr, np.ndarray):
        raise SonaTypeError(f"csr: expected a Csr or a scipy sparse matrix, got {type(csr).__name__}")
    if csr.ndim != 2 or csr.shape[0] != csr.shape[1] or csr.shape[0] == 0:
        raise SonaValueError(f"csr: expected shape (n, n), got {csr.shape}")
    matrix = csr_matrix(csr, dtype=np.float32, copy=True)
    matrix.setdiag(0)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    if len(matrix.data) and not (np.isfinite(matrix.data).all() and matrix.data.min() > 0):
        raise SonaValueError("csr: expected finite weights >= 0")
    if abs(matrix - matrix.T).max() > 0:
        raise SonaValueError("csr: expected a symmetric matrix")
    return matrix


def _sums(matrix: csr_matrix) -> Doubles:
    """Sum of the weights of each node, (n,) float64."""
    return np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()


def _power(degree: Doubles, exponent: float) -> Doubles:
    """degree^exponent, 0 where there is no edge."""
    return np.power(degree, exponent, where=degree > 0, out=np.zeros(len(degree)))


def _scaled(matrix: csr_matrix, left: Doubles, right: Doubles) -> csr_matrix:
    """diag(left) matrix diag(right)."""
    from scipy.sparse import csr_matrix

    data = matrix.data * np.repeat(left, np.diff(matrix.indptr)) * right[matrix.indices]
    return csr_matrix((data.astype(np.float32), matrix.indices, matrix.indptr), shape=matrix.shape)


def _hops(hops: Any, least: int) -> int:
    if type(hops) is not int or not least <= hops <= MAX_HOPS:
        raise SonaValueError(f"hops: expected an int from {least} to {MAX_HOPS}, got {hops!r}")
    return hops


def _positions(value: Any, n: int, name: str) -> Ints:
    array = np.asarray(value)
    if array.ndim != 1 or (len(array) and array.dtype.kind not in "iu"):
        raise SonaTypeError(f"{name}: expected an array of ints (m,), got {array.dtype} {array.shape}")
    if len(array) and not 0 <= array.min() <= array.max() < n:
        raise SonaValueError(f"{name}: expected positions in [0, {n}), got {array.min()} to {array.max()}")
    return array.astype(np.int64)


def _read(state: Mapping[str, Any], name: str) -> Doubles:
    array = state.get(name)
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or array.ndim != 1:
        raise SonaValueError(f"state: expected an array of numbers (m,) as {name}, got {type(array).__name__}")
    if not np.isfinite(array).all():
        raise SonaValueError(f"state: expected finite numbers as {name}")
    return array.astype(np.float64)


def _sigmoid(z: Any) -> Doubles:
    result: Doubles = (1 + np.tanh(z / 2)) / 2
    return result


def _softmax(z: Doubles) -> Doubles:
    e = np.exp(z - z.max())
    result: Doubles = e / e.sum()
    return result
