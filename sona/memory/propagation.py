"""Message passing with learned weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from sona._arrays import Floats, coerce
from sona.errors import SonaValueError
from sona.memory.csr import Doubles, Longs
from sona.memory.propagate import MAX_HOPS, Step, check_hops, matrix_of, positions_of


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
        self.hops, self.l2, self.steps = check_hops(hops, 1), float(l2), steps
        self.hop: Doubles = np.zeros(self.hops)
        self.share: Doubles = np.zeros(0)
        self.trust, self.bias = 1.0, 0.0

    def fit(self, kinds: Any, seed: Any, rows: Any, columns: Any, target: Any, offset: Any = None) -> Self:
        """
        Learn the weights from cells of which the outcome is known.

        Parameters
        ----------
        kinds : Csr, array or scipy sparse matrix (n, n), or a sequence of them
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
        row, column = positions_of(rows, n, "rows"), positions_of(columns, s.shape[1], "columns")
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
        self, steps: list[Step], seed: Doubles, cells: tuple[Longs, Longs], target: Doubles, offset: Doubles, hops: int, l2: float
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


def _steps(kinds: Any) -> list[Step]:
    several = kinds if isinstance(kinds, Sequence) else [kinds]
    steps = [Step(matrix_of(one), np.float64) for one in several]
    if not steps or len({len(step) for step in steps}) != 1:
        raise SonaValueError(f"kinds: expected graphs over the same nodes, at least one, got sizes {[len(step) for step in steps]}")
    return steps


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
