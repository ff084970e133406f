"""Integrated information of a small discrete system in a state: IIT 3.0, exact, over sona/iit3.h."""

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sona.errors import SonaTypeError, SonaValueError
from sona.memory._iit3 import NODES, RESOLUTION, WORK, reachable, solve, work

if TYPE_CHECKING:
    from sona.memory._iit3 import Side

ROUNDING = 1e-9  # by which a row may miss a sum of 1, and a state-by-state entry the product over nodes

Doubles = npt.NDArray[np.float64]
Nodes = tuple[int, ...]
Cut = tuple[Nodes, Nodes]  # connections from the first to the second are noise
Partition = tuple[tuple[Nodes, Nodes], tuple[Nodes, Nodes]]  # (mechanism, purview) of both parts


@dataclass(frozen=True, slots=True, eq=False)
class Concept:
    """
    What one mechanism says about past and future, and how much of it its parts do not say.

    Attributes
    ----------
    mechanism : tuple of int
        Its nodes.
    phi : float
        The lesser of `cause_phi` and `effect_phi`, above 0.
    cause_purview, effect_purview : tuple of int
        The nodes that it says the most about.
    cause_phi, effect_phi : float
        Distance of the repertoire from the nearest product over two parts.
    cause_repertoire, effect_repertoire : ndarray of float64, shape (2^k,)
        Chances of the states of the purview's k nodes, its first node in the lowest bit of the index. Read-only.
    cause_partition, effect_partition : tuple
        Those parts, ((mechanism, purview), (mechanism, purview)).
    """

    mechanism: Nodes
    phi: float
    cause_purview: Nodes
    effect_purview: Nodes
    cause_phi: float
    effect_phi: float
    cause_repertoire: Doubles
    effect_repertoire: Doubles
    cause_partition: Partition
    effect_partition: Partition


@dataclass(frozen=True, slots=True, eq=False)
class Iit3Result:
    """
    Phi of a system in a state; `float(result)` is `result.phi`.

    Attributes
    ----------
    phi : float
        Integrated conceptual information. 0 for a system that is not strongly connected or has one node.
    cut : tuple of two tuples of int, or None
        The unidirectional cut that costs phi: connections from the first nodes to the second are noise. None where nothing was cut: the
        system is not strongly connected, has one node, or has no concepts.
    ties : tuple of cuts
        All that cost the same, `cut` first. After a cut that costs nothing no other is looked at.
    concepts : tuple of Concept
        Of the system without a cut; mechanisms of fewer nodes first. Not looked for where it is not strongly connected or has one node.
    nodes : tuple of int
        The system.
    state : tuple of int
        Of these nodes.
    """

    phi: float
    cut: Cut | None
    ties: tuple[Cut, ...]
    concepts: tuple[Concept, ...]
    nodes: Nodes
    state: tuple[int, ...]

    def __float__(self) -> float:
        return self.phi


@dataclass(frozen=True, slots=True, eq=False)
class _Network:
    """Checked input: tpm (2^n, n), cm (n, n), state (n,)."""

    tpm: Doubles
    cm: npt.NDArray[np.uint8]
    state: tuple[int, ...]

    def part(self, nodes: Nodes) -> "_Network":
        """These nodes, while the others stay as they are."""
        rows = np.zeros(1 << len(nodes), dtype=np.int64)
        within = np.arange(len(rows))
        for at, node in enumerate(nodes):
            rows |= (within >> at & 1) << node
        rows |= sum(value << node for node, value in enumerate(self.state) if node not in nodes)
        columns = np.array(nodes)
        return _Network(
            np.ascontiguousarray(self.tpm[rows[:, None], columns]),
            np.ascontiguousarray(self.cm[columns[:, None], columns]),
            tuple(self.state[node] for node in nodes),
        )

    @property
    def index(self) -> int:
        return sum(value << node for node, value in enumerate(self.state))


def _real(value: Any, name: str) -> Doubles:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise SonaTypeError(f"{name}: expected an array of numbers, got {type(value).__name__} ({error})") from None
    if array.dtype.kind not in "fiub":
        raise SonaTypeError(f"{name}: expected an array of real numbers, got dtype {array.dtype}")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise SonaValueError(f"{name}: expected finite numbers, got NaN or infinity")
    return array


def _state_by_node(tpm: Any) -> Doubles:
    array = _real(tpm, "tpm")
    states, columns = array.shape if array.ndim == 2 else (0, 0)
    n = states.bit_length() - 1
    if n < 1 or states != 1 << n or columns not in (n, states):
        raise SonaValueError(f"tpm: expected shape (2^n, n) or (2^n, 2^n) for n nodes, got {array.shape}")
    if not ((array >= 0) & (array <= 1)).all():
        worst = array.flat[np.abs(array - 0.5).argmax()]
        raise SonaValueError(f"tpm: expected probabilities in [0, 1], got {worst:g}")
    if columns == n:
        return np.ascontiguousarray(array)
    sums = array.sum(axis=1)
    if (off := np.abs(sums - 1)).max() > ROUNDING:
        raise SonaValueError(f"tpm: expected state-by-state rows that sum to 1, got {sums[off.argmax()]:g} in row {off.argmax()}")
    one = np.arange(states)[:, None] >> np.arange(n) & 1  # (2^n, n) node i in state s
    nodes = np.clip(array @ one, 0, 1)
    for i in range(n):  # sums over the same chances in another order are no dependence
        other = nodes[np.arange(states) ^ 1 << i]
        _forget(nodes, i, (np.abs(nodes - other) <= states * np.finfo(np.float64).eps * np.maximum(nodes, other)).all(axis=0))
    product = np.ones_like(array)
    for i in range(n):
        product *= np.where(one[:, i], nodes[:, i, None], 1 - nodes[:, i, None])
    if (off := np.abs(array - product).max(axis=1)).max() > ROUNDING:
        raise SonaValueError(
            f"tpm: expected nodes that are independent given the past state, got row {off.argmax()} of a state-by-state matrix "
            f"that differs by {off.max():.2g} from the product over its nodes"
        )
    return np.ascontiguousarray(nodes)


def _forget(chances: Doubles, node: int, of: npt.NDArray[np.bool_]) -> None:
    """The chances of these nodes are the same whatever `node` was, to the last bit: they differ by rounding, which would make work."""
    chances[:, of] = (chances[:, of] + chances[np.arange(len(chances)) ^ 1 << node][:, of]) / 2


def _network(tpm: Any, cm: Any, state: Any) -> _Network:
    chances = _state_by_node(tpm)
    states, n = chances.shape
    values = _real(state, "state")
    if values.shape != (n,):
        raise SonaValueError(f"state: expected {n} nodes, got shape {values.shape}")
    if not np.isin(values, (0, 1)).all():
        raise SonaValueError(f"state: expected 0 or 1 for each node, got {values.tolist()}")
    connections = np.ones((n, n)) if cm is None else _real(cm, "cm")
    if connections.shape != (n, n):
        raise SonaValueError(f"cm: expected shape ({n}, {n}), got {connections.shape}")
    if not np.isin(connections, (0, 1)).all():
        raise SonaValueError("cm: expected 0 or 1 for each pair of nodes, got something else")
    for i in range(n):
        depends = np.abs(chances - chances[np.arange(states) ^ 1 << i]).max(axis=0) > RESOLUTION
        if (depends & (connections[i] == 0)).any():
            j = int((depends & (connections[i] == 0)).argmax())
            raise SonaValueError(f"cm: expected a connection from node {i} to node {j}, whose chances in tpm depend on it, got 0")
        _forget(chances, i, connections[i] == 0)
    return _Network(chances, np.ascontiguousarray(connections, np.uint8), tuple(int(value) for value in values))


def _members(mask: int, nodes: Nodes) -> Nodes:
    return tuple(node for at, node in enumerate(nodes) if mask >> at & 1)


def _partition(mechanism: int, side: "Side", nodes: Nodes) -> Partition:
    _, purview, part, part_purview, _ = side
    one = _members(part, nodes), _members(part_purview, nodes)
    return one, (_members(mechanism & ~part, nodes), _members(purview & ~part_purview, nodes))


def _solve(network: _Network, nodes: Nodes) -> Iit3Result:
    phi, severed, found = solve(network.tpm, network.cm, network.index)
    everything = (1 << len(nodes)) - 1
    cuts = tuple((_members(mask, nodes), _members(everything & ~mask, nodes)) for mask in severed)
    concepts = tuple(
        Concept(
            mechanism=_members(mechanism, nodes),
            phi=own,
            cause_purview=_members(cause[1], nodes),
            effect_purview=_members(effect[1], nodes),
            cause_phi=cause[0],
            effect_phi=effect[0],
            cause_repertoire=cause[4],
            effect_repertoire=effect[4],
            cause_partition=_partition(mechanism, cause, nodes),
            effect_partition=_partition(mechanism, effect, nodes),
        )
        for mechanism, own, cause, effect in found
    )
    return Iit3Result(phi, cuts[0] if cuts else None, cuts, concepts, nodes, network.state)


def _refuse_unreachable(network: _Network) -> None:
    if not reachable(network.tpm, network.index):
        raise SonaValueError(f"state: expected one that some state leads to, got {network.state}, which none leads to")


def _chosen(nodes: Iterable[int], n: int) -> Nodes:
    try:
        chosen = tuple(sorted({operator.index(node) for node in nodes}))
    except TypeError:
        raise SonaTypeError(f"nodes: expected some of 0 to {n - 1}, got {nodes!r}") from None
    if not chosen or chosen[0] < 0 or chosen[-1] >= n:
        raise SonaValueError(f"nodes: expected some of 0 to {n - 1}, got {chosen}")
    return chosen


def iit3(tpm: Any, cm: Any, state: Any, *, nodes: Iterable[int] | None = None) -> Iit3Result:
    """
    Phi of a system in a state by IIT 3.0, exact to rounding (Oizumi, Albantakis & Tononi 2014, PLoS Comput Biol 10(5) e1003588).

    Parameters
    ----------
    tpm : array_like, shape (2^n, n) or (2^n, 2^n)
        Chance that each node is 1 after each state; or of each state after each state, where nodes are independent given the past. Node 0
        is the lowest bit of a state's number.
    cm : array_like of 0 and 1, shape (n, n), or None
        `cm[i][j]` is 1 where node i connects to node j. None: all connect to all.
    state : array_like of 0 and 1, shape (n,)
        The current state.
    nodes : iterable of int, optional
        A part of the network; its other nodes stay as they are in `state`. The whole by default.

    Returns
    -------
    Iit3Result
        Phi, the cut and the concepts.

    Raises
    ------
    SonaValueError
        For a wrong shape, NaN, a number out of [0, 1], a cm without a connection that tpm has, a state that no state leads to, a part that
        is empty or not in the network, more than 7 nodes, or 7 with so many connections that it would take much longer than a quarter of a
        minute; that is found out before the work starts. State-by-state: also where nodes are not independent.
    SonaTypeError
        For what is not an array of real numbers, and nodes that are not integers.

    Thread-safety
    -------------
    Any number of threads; the interpreter's lock is released while it computes. From five nodes on Ctrl-C ends it between two cuts.
    """
    network = _network(tpm, cm, state)
    n = len(network.state)
    chosen = tuple(range(n)) if nodes is None else _chosen(nodes, n)
    if len(chosen) > NODES:
        raise SonaValueError(f"tpm: expected at most {NODES} nodes, got {len(chosen)}")
    part = network.part(chosen) if len(chosen) < n else network
    _refuse_unreachable(part)
    return _solve(part, chosen)


def major_complex(tpm: Any, cm: Any, state: Any) -> Iit3Result | None:
    """
    The set of nodes with the largest Phi, while the others stay as they are; None where no set has Phi above 0.

    Of sets that tie, the one with more nodes, then the first in lexicographic order. Sets whose state nothing leads to are left out.
    Parameters, errors and threads are those of `iit3`; the bound on work is on the sum over all sets.
    """
    network = _network(tpm, cm, state)
    n = len(network.state)
    if n > NODES:
        raise SonaValueError(f"tpm: expected at most {NODES} nodes, got {n}")
    _refuse_unreachable(network)
    sets = [nodes for size in range(n, 1, -1) for nodes in combinations(range(n), size)]
    parts = [(part, nodes) for nodes in sets if reachable((part := network.part(nodes)).tpm, part.index)]
    if (steps := sum(work(part.tpm) for part, _ in parts)) > WORK:
        raise SonaValueError(f"tpm: expected at most {WORK:.1e} steps of work over all sets of nodes, got {steps:.1e}: fewer connections")
    best: Iit3Result | None = None
    for part, nodes in parts:
        found = _solve(part, nodes)
        if found.phi > (best.phi if best else 0) + RESOLUTION:
            best = found
    return best
