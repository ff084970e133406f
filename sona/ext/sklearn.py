"""scikit-learn estimators over a Router: `BanditClassifier` and `AdapterTransformer`."""

from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import check_is_fitted, validate_data

from sona._arrays import Floats
from sona._fields import whole
from sona.errors import SonaValueError
from sona.router import Router


class _Taught(BaseEstimator):  # type: ignore[misc]
    """
    A router whose arms are the classes, taught by labelled rows: it picks an arm for each row and is told whether that was the label.

    Rows are scaled to unit norm by the router, so only their direction counts; a constant input is learned beside it.
    """

    router_: Router
    classes_: npt.NDArray[Any]
    n_features_in_: int

    def __init__(self, *, epochs: int = 5, random_state: Any = None) -> None:
        self.epochs = epochs
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """
        Forget, and learn from rows X (n, n_features) with labels y (n,), `epochs` times in shuffled order.

        Raises
        ------
        ValueError
            As scikit-learn's estimators do: shapes, NaN and infinity, labels that are not classes.
        """
        epochs = whole(self.epochs, "epochs")
        if epochs < 1:
            raise SonaValueError(f"epochs: expected at least 1, got {epochs}")
        X, y = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(y)
        random = check_random_state(self.random_state)
        self._open(unique_labels(y), X, y, int(random.randint(2**31 - 1)))
        rows = np.searchsorted(self.classes_, y)
        for _ in range(epochs):
            order = random.permutation(len(X))
            self._teach(X[order], rows[order])
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> Self:
        """
        Learn from more rows, once and in order; the first call makes the router.

        Parameters
        ----------
        X : (n, n_features)
        y : (n,)
        classes : array, optional
            All classes there will be; needed in the first call where y does not hold them all, and the same in each call that names them.
        """
        first = not hasattr(self, "router_")
        if not first and classes is not None and not np.array_equal(self.classes_, unique_labels(classes)):
            raise ValueError(f"classes: expected those of the first call, {self.classes_}, got {unique_labels(classes)}")
        X, y = validate_data(self, X, y, dtype=np.float32, reset=first)
        check_classification_targets(y)
        known = self.classes_ if not first else unique_labels(y if classes is None else classes)
        rows = np.searchsorted(known, y)
        strange = known[np.minimum(rows, len(known) - 1)] != y
        if np.any(strange):
            if first:
                del self.n_features_in_  # nothing has been learned: the next call is the first
            raise ValueError(f"y: expected labels among classes {known}, got {np.unique(np.asarray(y)[strange])}")
        if first:
            self._open(known, X, y, int(check_random_state(self.random_state).randint(2**31 - 1)))
        self._teach(X, rows)
        return self

    def _open(self, classes: npt.NDArray[Any], X: Floats, y: npt.NDArray[Any], seed: int) -> None:
        self.classes_ = classes
        self._seed = seed
        self._vectors = self._arms(X, y)
        self.router_ = self._router()

    def _arms(self, X: Floats, y: npt.NDArray[Any]) -> Floats | None:
        """Vectors of the arms, (classes, width); None for seeded orthonormal ones."""
        return None

    @property
    def _width(self) -> int:
        """Of the router: as many numbers as there are features, and at least as many as classes, whose arms are orthonormal."""
        return self.n_features_in_ if self._vectors is not None else max(self.n_features_in_, len(self.classes_))

    def _router(self) -> Router:
        if self._vectors is not None:
            return Router(self._vectors, seed=self._seed)
        return Router(list(range(len(self.classes_))), dim=self._width, seed=self._seed)

    def _wide(self, X: Floats) -> Floats:
        """X with zeros up to the router's width."""
        wide = np.zeros((len(X), self._width), dtype=np.float32)
        wide[:, : X.shape[1]] = X
        return wide

    def _teach(self, X: Floats, rows: npt.NDArray[np.intp]) -> None:
        for x, row in zip(self._wide(X), rows, strict=True):
            decision = self.router_.route(x)
            self.router_.feedback(decision.id, float(decision.arm == row))

    def __getstate__(self) -> dict[str, Any]:
        """Parameters, and what was learned as arrays: a copy does not know the decisions that still wait for a reward."""
        state: dict[str, Any] = dict(super().__getstate__())
        router = state.pop("router_", None)
        if router is not None:
            state["_learned"] = router.engine.state()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        learned = state.pop("_learned", None)
        super().__setstate__(state)
        if learned is not None:
            self.router_ = self._router()
            self.router_.engine.restore(learned)


class BanditClassifier(ClassifierMixin, _Taught):  # type: ignore[misc]
    """
    A Router as a classifier, taught by whether its answer was right.

    `fit` and `partial_fit` play labelled rows as a bandit: for each row the router picks a class and learns only whether that was the
    label. A classifier that reads labels, such as logistic regression, learns more from the same rows; this one is for what has only
    outcomes later: `router_` is the router, to `route` requests and give `feedback` after a fit.

    Parameters
    ----------
    epochs : int
        Passes of `fit` over its rows.
    random_state : int, RandomState or None

    Attributes
    ----------
    router_ : Router
        Its arms are row numbers of `classes_`.
    classes_ : (n_classes,) array
    n_features_in_ : int

    Thread-safety
    -------------
    One thread at a time.
    """

    def decision_function(self, X: Any) -> npt.NDArray[np.float64]:
        """Scores of the classes, (n, n_classes), or (n,) of the second of two: inner products of adapted rows and arms over tau."""
        scores = self._scores(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:
        """Softmax of the scores, (n, n_classes): how sure the router is, not a calibrated frequency."""
        scores = self._scores(X)
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        probabilities: npt.NDArray[np.float64] = odds / odds.sum(axis=1, keepdims=True)
        return probabilities

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """The class with the highest score, (n,)."""
        scores = self._scores(X)
        labels: npt.NDArray[Any] = self.classes_[scores.argmax(axis=1)]
        return labels

    def _scores(self, X: Any) -> npt.NDArray[np.float64]:
        check_is_fitted(self, "router_")
        X = self._wide(validate_data(self, X, dtype=np.float32, reset=False))
        norms = np.linalg.norm(X.astype(np.float64), axis=1, keepdims=True)
        unit = np.divide(X, norms, out=np.zeros(X.shape), where=norms > 0)
        adapted = self.router_.apply_batch(unit.astype(np.float32)).astype(np.float64)
        policy = self.router_._policy
        scores: npt.NDArray[np.float64] = adapted @ policy.vectors().astype(np.float64).T / policy.tau
        return scores


class AdapterTransformer(OneToOneFeatureMixin, TransformerMixin, _Taught):  # type: ignore[misc]
    """
    Embeddings bent towards what was right: X + delta(X), with a low-rank delta learned from labelled rows or rewards.

    The arms are the classes' mean directions in the first rows that it sees; rows move so that right classes become more similar to
    them. Distances after `transform` are those of the adapted space, for a nearest-neighbour search or a classifier that follows.

    Parameters, attributes and thread-safety as for `BanditClassifier`.
    """

    def _arms(self, X: Floats, y: npt.NDArray[Any]) -> Floats | None:
        unit = X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        means = np.array([unit[y == label].mean(axis=0) if np.any(y == label) else np.zeros(X.shape[1]) for label in self.classes_])
        norms = np.linalg.norm(means, axis=1)
        different = len(np.unique(means.round(6), axis=0)) == len(means)
        return means.astype(np.float32) if different and np.all(norms > 1e-6) else None

    def transform(self, X: Any) -> Floats:
        """x + delta(x) per row of unit norm, times the row's norm, (n, n_features): linear in the length of a row."""
        check_is_fitted(self, "router_")
        X = validate_data(self, X, dtype=np.float32, reset=False)
        norms = np.linalg.norm(X.astype(np.float64), axis=1, keepdims=True)
        unit = np.divide(X, norms, out=np.zeros(X.shape), where=norms > 0)
        adapted = self.router_.engine.apply_batch(self._wide(unit.astype(np.float32)))
        moved: Floats = (adapted[:, : X.shape[1]] * norms).astype(np.float32)
        return moved

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags
