"""A rival of `sona.Propagation`: two layers of graph convolution over the nodes' vectors, trained with L-BFGS in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


class Convolution:
    """
    GraphSAGE with weighted means (Hamilton, Ying and Leskovec 2017): H = relu([X, S X] A), Z = [H, S H] B + b, S = D^-1/2 W D^-1/2.

    Parameters
    ----------
    step : scipy sparse matrix (n, n)
        S.
    x : (n, d) float64
    hidden, out : int
        Columns of A and of B.
    """

    def __init__(self, step: Any, x: F64, hidden: int, out: int, *, l2: float, seed: int = 0) -> None:
        self.step, self.input, self.hidden, self.out, self.l2 = step, np.hstack([x, step @ x]), hidden, out, l2
        rng, width = np.random.default_rng(seed), 2 * x.shape[1]
        a = rng.standard_normal((width, hidden)) * np.sqrt(2 / width)
        b = rng.standard_normal((2 * hidden, out)) * np.sqrt(0.5 / hidden)
        self.at = np.concatenate([a.ravel(), b.ravel(), np.zeros(out)])

    def split(self, at: F64) -> tuple[F64, F64, F64]:
        width = self.input.shape[1]
        a, b, bias = np.split(at, [width * self.hidden, width * self.hidden + 2 * self.hidden * self.out])
        return a.reshape(width, self.hidden), b.reshape(2 * self.hidden, self.out), bias

    def layers(self, at: F64) -> tuple[F64, F64]:
        """[H, S H] (n, 2 hidden) and Z (n, out)."""
        a, b, bias = self.split(at)
        h = np.maximum(self.input @ a, 0)
        both = np.hstack([h, self.step @ h])
        return both, both @ b + bias

    def back(self, at: F64, both: F64, by_z: F64) -> F64:
        """The gradient by the weights from the one by Z."""
        b = self.split(at)[1]
        by_both = by_z @ b.T
        by_h = by_both[:, : self.hidden] + self.step.T @ by_both[:, self.hidden :]
        by_h[both[:, : self.hidden] <= 0] = 0
        return np.concatenate([(self.input.T @ by_h).ravel(), (both.T @ by_z).ravel(), by_z.sum(0)])

    def minimise(self, loss: Any, steps: int = 200) -> F64:
        """loss(Z) -> (value, gradient by Z). Returns Z (n, out) at the minimum of loss + l2 / 2 |weights|^2."""
        from scipy.optimize import minimize

        def whole(at: F64) -> tuple[float, F64]:
            both, z = self.layers(at)
            value, by_z = loss(z)
            return value + self.l2 / 2 * float(at @ at), self.back(at, both, by_z) + self.l2 * at

        self.at = minimize(whole, self.at, jac=True, method="L-BFGS-B", options={"maxiter": steps}).x
        return self.layers(self.at)[1]


def of_cells(row: I64, column: I64, target: F64, offset: F64) -> Any:
    """Log-loss of cells with logits offset + Z[row, column]."""

    def loss(z: F64) -> tuple[float, F64]:
        logit = z[row, column] + offset
        by_z = np.zeros_like(z)
        np.add.at(by_z, (row, column), ((1 + np.tanh(logit / 2)) / 2 - target) / len(target))
        return float(np.mean(np.logaddexp(0, logit) - target * logit)), by_z

    return loss


def of_pairs(u: I64, v: I64, target: F64) -> Any:
    """Log-loss of pairs of nodes with logits <Z_u, Z_v>, the last column of Z left for a bias of the node."""

    def loss(z: F64) -> tuple[float, F64]:
        logit = (z[u, :-1] * z[v, :-1]).sum(1) + z[u, -1] + z[v, -1]
        error = ((1 + np.tanh(logit / 2)) / 2 - target) / len(target)
        by_z = np.zeros_like(z)
        for one, other in ((u, v), (v, u)):
            np.add.at(by_z, one, error[:, None] * np.hstack([z[other, :-1], np.ones((len(u), 1))]))
        return float(np.mean(np.logaddexp(0, logit) - target * logit)), by_z

    return loss
