"""Phi: how much of what a graph's walkers carry from one step to the next is lost when the graph is cut in two. See docs/phi.md."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sona.errors import SonaTypeError, SonaValueError
from sona.memory import _phi

F64 = npt.NDArray[np.float64]

METHODS = ("auto", "exhaustive", "queyranne")


@dataclass(frozen=True)
class Phi:
    """
    The least loss by a cut; ``float()`` of it is `value`.

    Attributes
    ----------
    value : float
        Bits a step that the cut loses.
    partition : tuple
        The two sides of the cut, tuples of nodes in their order; the first holds the first node. Nodes are row numbers, or what a networkx
        graph calls them. The second is empty for a single node.
    total : float
        Bits a step that the occupancies of all nodes hold about those a step later.
    method : str
        What found the cut: "exhaustive" or "queyranne"; "connectivity" where the graph falls apart by itself and `value` is 0.
    n : int
        Nodes.
    """

    value: float
    partition: tuple[tuple[Hashable, ...], tuple[Hashable, ...]]
    total: float
    method: str
    n: int

    def __float__(self) -> float:
        return self.value


_FOUND_BY = ("connectivity", "exhaustive", "queyranne")


def phi(weights: Any, alpha: float = 0.85, *, directed: bool | None = None, normalise: bool = False, method: str = "auto") -> Phi:
    """
    Integrated information of damped walkers on a weighted graph, in bits a step.

    Walkers move from node i to j with probability ``weights[i, j] / weights[i].sum()``; after each step one stays with probability
    `alpha`, else it is replaced by a new one from the stationary distribution. I(A) is what the numbers of walkers on the nodes A hold
    about those a step later, and Phi the least of I(V) - I(A) - I(V \\ A) over all cuts of the nodes V in two. It is 0 where the
    graph is in pieces (if directed: is not strongly connected), which `method` tells, and rounds to 0 where links of less than about 1e-8
    of the others' weight hold it together. It does not change with the order of nodes or the scale of weights.

    Parameters
    ----------
    weights : array_like, scipy sparse array or networkx graph
        (n, n), finite and not negative, [i, j] from i to j; edges of a networkx graph count by their attribute "weight", 1 where they
        have none, and parallel edges add up. A weight on the diagonal lets a walker stay where it is. 1 <= n <= 64.
    alpha : float
        In (0, 0.999999].
    directed : bool, optional
        False: weights have to be symmetric (to 1e-6 of the larger one; the mean counts). By default what a networkx graph says of itself,
        and False for all else.
    normalise : bool
        Look for the cut with the fewest bits per node of its smaller side in place of the fewest bits; `value` is still the bits of the
        cut. Cuts of one node are cheap in large dense graphs, this finds the others. n <= 18.
    method : str
        "exhaustive" looks at every cut (n <= 18), "queyranne" is polynomial; both are exact. "auto" takes the faster.

    Raises
    ------
    SonaTypeError
        Where something else than real numbers is passed.
    SonaValueError
        For weights or options outside of what is said above.
    """
    kind = _checked(alpha, normalise, method)
    if directed is None and type(weights) is not np.ndarray and hasattr(weights, "is_directed"):
        directed = bool(weights.is_directed())
    matrix, labels = weights_of(weights, _phi.EXHAUSTED if normalise or method == "exhaustive" else _phi.NODES)
    found = _phi.compute(matrix, alpha, bool(directed), normalise, kind)
    if found is None:
        raise _refusal(matrix, bool(directed), "weights")
    value, total, near, far, by = found
    if labels is None:
        return Phi(value, (near, far), total, _FOUND_BY[by], len(matrix))
    return Phi(value, (tuple(labels[i] for i in near), tuple(labels[i] for i in far)), total, _FOUND_BY[by], len(matrix))


def phi_of_subgraphs(
    start: npt.ArrayLike,
    stop: npt.ArrayLike,
    column: npt.ArrayLike,
    weight: npt.ArrayLike,
    nodes: npt.ArrayLike | Iterable[npt.ArrayLike],
    alpha: float = 0.85,
    *,
    directed: bool = False,
    normalise: bool = False,
) -> F64:
    """
    `phi` of many parts of one graph, each with the edges among its nodes: of what dreams have visited.

    Parameters
    ----------
    start, stop : array_like
        (n,) int64: the edges from node i are the entries start[i] to stop[i] - 1 of `column` and `weight`. For a scipy CSR array
        ``indptr[:-1]`` and ``indptr[1:]``.
    column : array_like
        (entries,) int32, the nodes that the edges lead to; entries of one pair add up.
    weight : array_like
        (entries,) float32. Arrays of these types are not copied.
    nodes : array_like or iterable of array_like
        A row of node numbers for each part, all of one length or not. Nodes may come in any order and more than once, and numbers
        below 0 are none: a row may be a walk with -1 after its end. 1 to 64 different nodes a row, to 18 with `normalise`.
    alpha, directed, normalise
        As for `phi`.

    Returns
    -------
    ndarray
        Bits a step, one for each row.

    Raises
    ------
    SonaTypeError, SonaValueError
        As for `phi`; the message names the row.
    """
    _checked(alpha, normalise, "auto")
    graph = (_vector(start, np.int64, "start"), _vector(stop, np.int64, "stop"), _vector(column, np.int32, "column"))
    weights = _vector(weight, np.float32, "weight", kinds="fiu")
    if len(graph[0]) != len(graph[1]):
        raise SonaValueError(f"stop: expected shape {graph[0].shape} as start has, got {graph[1].shape}")
    if len(graph[2]) != len(weights):
        raise SonaValueError(f"weight: expected shape {graph[2].shape} as column has, got {weights.shape}")
    member, offset = _rows(nodes)
    value, failed = _phi.subgraphs(*graph, weights, member, offset, alpha, bool(directed), normalise)
    if failed >= 0:
        row = member[offset[failed] : offset[failed + 1]]
        raise _refused_row(*graph, weights, row, bool(directed), normalise, f"nodes[{failed}]")
    return value


def _checked(alpha: Any, normalise: Any, method: Any) -> int:
    """The number of the method."""
    if isinstance(alpha, bool) or not isinstance(alpha, (float, int, np.floating, np.integer)):
        raise SonaTypeError(f"alpha: expected a number, got {type(alpha).__name__}")
    if not 0 < alpha <= _phi.ALPHA:
        raise SonaValueError(f"alpha: expected a number in (0, {_phi.ALPHA}], got {alpha}")
    if not isinstance(method, str) or method not in METHODS:
        raise SonaValueError(f"method: expected 'auto', 'exhaustive' or 'queyranne', got {method!r}")
    if normalise and method == "queyranne":
        raise SonaValueError("method: expected 'auto' or 'exhaustive' with normalise, got 'queyranne', which is not exact for it")
    return METHODS.index(method)


def weights_of(weights: Any, most: int = _phi.NODES) -> tuple[F64, tuple[Hashable, ...] | None]:
    """What `phi` takes as a matrix, of at most so many nodes, and what a networkx graph calls them. Signs and symmetry are not checked."""
    labels = None
    if type(weights) is not np.ndarray:
        if hasattr(weights, "is_directed") and hasattr(weights, "edges"):
            labels = tuple(weights)
        weights = _dense(weights, labels)
    return _matrix(weights, "weights", most), labels


def _dense(weights: Any, labels: tuple[Hashable, ...] | None) -> Any:
    """What numpy understands, of a size that will not be refused for it."""
    if labels is not None:
        _check_count(len(labels), _phi.NODES, "weights")
        place = {label: i for i, label in enumerate(labels)}
        matrix = np.zeros((len(labels), len(labels)))
        for source, target, weight in weights.edges(data="weight", default=1):
            i, j = place[source], place[target]
            try:
                if isinstance(weight, str) or np.iscomplexobj(weight):
                    raise TypeError
                matrix[i, j] += float(weight)
            except (TypeError, ValueError, OverflowError):
                raise SonaTypeError(f"weights: expected a number as weight of the edge {(source, target)}, got {weight!r}") from None
            if i != j and not weights.is_directed():
                matrix[j, i] = matrix[i, j]
        return matrix
    if hasattr(weights, "toarray") and hasattr(weights, "shape"):
        if len(weights.shape) == 2:
            _check_count(max(weights.shape), _phi.NODES, "weights")
        return weights.toarray()
    try:
        return np.asarray(weights)
    except ValueError as error:
        raise SonaTypeError(f"weights: expected an array of numbers, got {type(weights).__name__} ({error})") from None


def _check_count(n: int, most: int, name: str) -> None:
    if not 1 <= n <= most:
        why = " with normalise or method='exhaustive'" if most == _phi.EXHAUSTED else ""
        raise SonaValueError(f"{name}: expected 1 to {most} nodes{why}, got {n}")


def _matrix(array: npt.NDArray[Any], name: str, most: int) -> F64:
    if array.dtype.kind not in "fiub":
        raise SonaTypeError(f"{name}: expected an array of real numbers, got dtype {array.dtype}")
    if array.ndim != 2 or array.shape[0] != array.shape[1]:
        raise SonaValueError(f"{name}: expected shape (n, n), got {array.shape}")
    _check_count(len(array), most, name)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(array, dtype=np.float64)


def _refusal(w: F64, directed: bool, name: str) -> Exception:
    """What is wrong with weights that C refused."""
    for wrong, expected in ((~np.isfinite(w), "finite weights"), (w < 0, "weights of at least 0")):
        if wrong.any():
            i, j = (int(k[0]) for k in np.nonzero(wrong))
            return SonaValueError(f"{name}: expected {expected}, got {w[i, j]} from {i} to {j}")
    apart = np.abs(w - w.T) > _phi.ASYMMETRY * np.maximum(w, w.T)
    if not directed and apart.any():
        i, j = (int(k[0]) for k in np.nonzero(apart))
        return SonaValueError(
            f"{name}: expected a symmetric matrix, or directed=True, got {w[i, j]} from {i} to {j} and {w[j, i]} from {j} to {i}"
        )
    return SonaValueError(
        f"{name}: expected a stationary distribution that float64 holds, got weights from {w[w > 0].min(initial=np.inf)} to {w.max()}"
    )


def _vector(value: npt.ArrayLike, dtype: Any, name: str, kinds: str = "iu") -> npt.NDArray[Any]:
    wanted = "integers" if kinds == "iu" else "numbers"
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise SonaTypeError(f"{name}: expected an array of {wanted}, got {type(value).__name__} ({error})") from None
    if array.dtype.kind not in kinds and array.size:
        raise SonaTypeError(f"{name}: expected an array of {wanted}, got dtype {array.dtype}")
    if array.ndim != 1:
        raise SonaValueError(f"{name}: expected shape (n,), got {array.shape}")
    with np.errstate(over="ignore"):
        result = np.require(array, dtype, ["C", "A"])
    if wanted == "integers" and not np.can_cast(array.dtype, dtype) and (beyond := result != array).any():
        raise SonaValueError(f"{name}: expected numbers that {np.dtype(dtype)} holds, got {array[beyond][0]}")
    return result


def _rows(nodes: Any) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """All rows one after the other, and where each begins."""
    if isinstance(nodes, np.ndarray) and nodes.ndim == 2:
        member = _vector(nodes.reshape(-1), np.int64, "nodes")
        return member, np.arange(len(nodes) + 1, dtype=np.int64) * nodes.shape[1]
    try:
        given = iter(nodes)
    except TypeError:
        raise SonaTypeError(f"nodes: expected a row of integers for each part, got {type(nodes).__name__}") from None
    rows = [_vector(row, np.int64, f"nodes[{k}]") for k, row in enumerate(given)]
    offset = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=offset[1:])
    return np.concatenate([*rows, np.empty(0, dtype=np.int64)]), offset


def _refused_row(
    start: npt.NDArray[Any],
    stop: npt.NDArray[Any],
    column: npt.NDArray[Any],
    weight: npt.NDArray[Any],
    row: npt.NDArray[np.int64],
    directed: bool,
    normalise: bool,
    name: str,
) -> Exception:
    """What is wrong with the part that C refused."""
    ids = np.unique(row[row >= 0])
    if len(ids) and ids[-1] >= len(start):
        return SonaValueError(f"{name}: expected nodes below {len(start)}, got {ids[-1]}")
    try:
        _check_count(len(ids), _phi.EXHAUSTED if normalise else _phi.NODES, name)
    except SonaValueError as error:
        return error
    w = np.zeros((len(ids), len(ids)))
    for i, node in enumerate(ids):
        first, end = start[node], stop[node]
        if not 0 <= first <= end <= len(column):
            return SonaValueError(f"start, stop: expected rows within {len(column)} entries, got {first} to {end} for node {node}")
        inside = np.isin(column[first:end], ids)
        np.add.at(w[i], np.searchsorted(ids, column[first:end][inside]), weight[first:end][inside])
    return _refusal(w, directed, f"{name}, by the order of its nodes")
