"""LinUCB, the usual baseline, given the same prior knowledge as sona: it starts from the arm vectors, not from zero."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


class LinUCB:
    """Disjoint LinUCB (Li et al., WWW 2010): one ridge regression per arm, whose coefficients start at the arm's vector.

    Parameters
    ----------
    arms : (K, d) array
        Prior mean of the coefficients.
    alpha : float
        Width of the upper confidence bound.
    ridge : float
        Prior precision.
    """

    name = "LinUCB"
    learns = True

    def __init__(self, arms: npt.NDArray[np.float32], *, alpha: float, ridge: float) -> None:
        self.alpha = alpha
        self.ridge = ridge
        self._mean = arms.astype(np.float32)  # (K, d)
        self._covariance = np.tile(np.eye(arms.shape[1], dtype=np.float32) / np.float32(ridge), (len(arms), 1, 1))  # (K, d, d)

    @property
    def state_bytes(self) -> int:
        return self._mean.nbytes + self._covariance.nbytes

    def route(self, x: npt.NDArray[np.float32]) -> tuple[int, npt.NDArray[np.float32]]:
        """The arm of the highest bound, with the x that :meth:`feedback` needs."""
        scores = self._mean @ x
        if self.alpha:
            scores += self.alpha * np.sqrt((self._covariance @ x) @ x)
        return int(scores.argmax()), x

    def arm(self, decision: tuple[int, npt.NDArray[np.float32]]) -> int:
        return decision[0]

    def feedback(self, decision: tuple[int, npt.NDArray[np.float32]], reward: float) -> None:
        arm, x = decision
        direction = self._covariance[arm] @ x
        gain = direction / (1 + x @ direction)
        self._mean[arm] += gain * (reward - self._mean[arm] @ x)
        self._covariance[arm] -= np.outer(gain, direction)

    def predict(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """Arm of the highest mean per row, (n,)."""
        return np.asarray(np.argmax(x @ self._mean.T, axis=1), np.int64)
