"""What a caller gives as arms, as a vector per name, or a clear error."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sona._arrays import Floats, coerce
from sona.errors import SonaTypeError, SonaValueError


def arm_vectors(arms: Any, dim: int | None, seed: int) -> dict[Any, Floats]:
    """
    name -> vector (dim,) for each arm that a caller names.

    Parameters
    ----------
    arms : mapping, array or sequence of names
        name -> vector, an array (K, dim) whose row numbers are the names, or names alone, which get seeded orthonormal vectors.
    dim : int or None
        Needed for names alone.
    seed : int

    Raises
    ------
    SonaTypeError, SonaValueError
        Anything else.
    """
    if isinstance(arms, Mapping):
        if not arms:
            raise SonaValueError("arms: expected at least one arm, got none")
        first, vector = next(iter(arms.items()))
        width = len(coerce(vector, (None,), f"arm {first!r}")) if dim is None else dim
        return {name: coerce(vector, (width,), f"arm {name!r}") for name, vector in arms.items()}
    if isinstance(arms, np.ndarray) and arms.ndim == 2 and arms.dtype.kind in "fiu":
        return dict(enumerate(coerce(arms, (None, dim), "arms")))
    if isinstance(arms, str | bytes) or not isinstance(arms, Sequence):
        raise SonaTypeError(f"arms: expected a mapping, a (K, dim) array or a sequence of names, got {type(arms).__name__}")
    names = list(arms)
    if not all(isinstance(name, Hashable) for name in names):
        raise SonaTypeError(f"arms: expected names, or an array (K, dim) of vectors, got a sequence that starts with {names[0]!r}")
    if not names or len(set(names)) != len(names):
        raise SonaValueError(f"arms: expected distinct names, at least one, got {names}")
    if dim is None or dim < 1:
        raise SonaValueError(f"dim: expected the length of x for arms without vectors, got {dim}")
    return dict(zip(names, _orthonormal(len(names), dim, seed), strict=True))


def _orthonormal(count: int, dim: int, seed: int) -> Floats:
    """Random unit vectors (count, dim), orthogonal within each group of dim."""
    rng = np.random.default_rng(seed)
    groups = [np.linalg.qr(rng.normal(size=(dim, dim)))[0] for _ in range(-(-count // dim))]
    rows: Floats = np.concatenate(groups)[:count].astype(np.float32)
    return rows


def refuse_same_text(names: Iterable[Any]) -> None:
    """SonaValueError where two names are one as text: a store knows arms by that."""
    seen: dict[str, Any] = {}
    for name in names:
        twin = seen.setdefault(str(name), name)
        if twin is not name:
            raise SonaValueError(f"arms: expected names that differ as text, got {twin!r} and {name!r}")


def refuse_identical(vectors: Mapping[Any, Floats]) -> None:
    """SonaValueError where two arms have one vector: no score could tell them apart."""
    seen: dict[bytes, Any] = {}
    for name, vector in vectors.items():
        twin = seen.setdefault(vector.tobytes(), name)
        if twin is not name:
            raise SonaValueError(f"arms: expected different vectors, got the same one for {twin!r} and {name!r}")
