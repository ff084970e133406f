"""What a dream is worth, measure by measure, and the gates that let the better ones through."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from sona.errors import SonaTypeError, SonaValueError
from sona.memory.csr import Doubles, Longs
from sona.memory.phi import phi_of_subgraphs
from sona.memory.visited import Visited

if TYPE_CHECKING:
    from sona.memory.dream import Dream
    from sona.memory.graph import MemoryGraph
    from sona.memory.snapshot import GraphSnapshot

# Shares of novelty, coherence, utility and diversity in the score: those of the reference implementation's design.
SCORE = (0.4, 0.3, 0.2, 0.1)
MEASURES = ("density", "phi", "score")

Measure = Literal["density", "phi", "score"]


@dataclass(frozen=True, slots=True)
class DreamQuality:
    """
    Measures of one dream: phi in bits, the others in [0, 1].

    Attributes
    ----------
    novelty : float
        Mean over the proposed pairs of 1 - cosine (1 where the cosine is negative), with 0 for a pair that has an edge by now; 0 without
        proposals.
    coherence : float
        Mean cosine of consecutive nodes, 0 if it is negative or there is one node.
    utility : float
        Mean of quality x strength over the nodes visited, each once.
    diversity : float
        1 - the mean cosine of the pairs of nodes visited, within [0, 1]; 0 for one node.
    density : float
        Share of the pairs of nodes visited that are edges; 0 for one node.
    phi : float
        Integration of the visited subgraph in bits a step, see `sona.memory.phi`; 0 for one node.
    score : float
        0.4 novelty + 0.3 coherence + 0.2 utility + 0.1 diversity.
    """

    novelty: float
    coherence: float
    utility: float
    diversity: float
    density: float
    phi: float
    score: float


class DreamEvaluator:
    """
    Measures dreams of a memory, all of a cycle at once.

    Parameters
    ----------
    memory : MemoryGraph or GraphSnapshot
        A graph is read as it is at each call.
    alpha : float
        Survival of the walkers behind Phi, in (0, 1).
    """

    def __init__(self, memory: MemoryGraph | GraphSnapshot, *, alpha: float = 0.85) -> None:
        if not 0 < alpha < 1:
            raise SonaValueError(f"alpha: expected a number in (0, 1), got {alpha!r}")
        self._memory, self._alpha = memory, alpha

    def evaluate(self, dreams: Sequence[Dream]) -> list[Dream]:
        """
        The same dreams with their quality.

        Raises
        ------
        SonaValueError
            A dream of nodes that the memory does not hold, of none, or one that proposes a pair of nodes that it did not visit.
        """
        if not dreams:
            return []
        snapshot = frozen(self._memory)
        visited, members = _visited(snapshot, dreams)
        mask, weight = visited.mask, visited.weight
        x = snapshot.vectors[visited.nodes] * mask[:, :, None]
        cosine = (x @ x.transpose(0, 2, 1)).astype(np.float64)
        pairs = mask[:, :, None] & mask[:, None, :] & np.tri(mask.shape[1], k=-1, dtype=np.bool_)
        possible = np.maximum(pairs.sum(axis=(1, 2)), 1)
        diversity = np.where(visited.size > 1, 1 - (cosine * pairs).sum(axis=(1, 2)) / possible, 0.0)
        worth = snapshot.quality[visited.nodes].astype(np.float64) * snapshot.strength[visited.nodes]
        measured = {
            "novelty": _novelty(dreams, members, cosine, weight),
            "coherence": _coherence(visited, cosine),
            "utility": (worth * mask).sum(axis=1) / visited.size,
            "diversity": diversity.clip(0, 1),
        }
        measured["density"] = ((weight > 0) & pairs).sum(axis=(1, 2)) / possible
        csr = snapshot.csr()
        measured["phi"] = phi_of_subgraphs(csr.start, csr.stop, csr.column, csr.weight, visited.nodes, self._alpha)
        measured["score"] = sum(share * values for share, values in zip(SCORE, measured.values(), strict=False))
        rows = zip(*(values.tolist() for values in measured.values()), strict=True)
        return [replace(dream, quality=DreamQuality(*row)) for dream, row in zip(dreams, rows, strict=True)]


class PhiEvaluator:
    """
    Integration of single dreams: the roadmap's evaluator. `DreamEvaluator` measures many at once, Phi among the rest.

    Parameters are those of `DreamEvaluator`.
    """

    def __init__(self, memory: MemoryGraph | GraphSnapshot, *, alpha: float = 0.85) -> None:
        self._evaluator = DreamEvaluator(memory, alpha=alpha)

    def evaluate_dream(self, dream: Dream) -> float:
        """Phi of the subgraph that the dream visited, in bits a step."""
        (measured,) = self._evaluator.evaluate([dream])
        assert measured.quality is not None
        return measured.quality.phi


@dataclass(frozen=True, kw_only=True, slots=True)
class DreamGate:
    """
    Which dreams of a cycle may change the memory.

    Attributes
    ----------
    by : "density", "phi", "score" or None
        The measure whose quantile counts; None lets all through. Density, because on every graph measured the better half by density
        held more true links than that by Phi, and that by score fewer than all dreams; see docs/dreams.md.
    quantile : float
        Of this cycle's dreams, in [0, 1]: a dream at it or above passes, half of them with 0.5. What counts as dense or integrated
        depends on the graph and on the length of the walks, so a quantile means the same everywhere and a constant does not.
    phi_threshold : float or None
        Least Phi in bits besides; 0.3 is the roadmap's. None by default: how many dreams 0.3 bits let through depends on the length of
        the walks and on the graph, and the dreams that pass are no better.
    """

    by: Measure | None = "density"
    quantile: float = 0.5
    phi_threshold: float | None = None

    def __post_init__(self) -> None:
        if self.by is not None and self.by not in MEASURES:
            raise SonaValueError(f"by: expected one of {', '.join(MEASURES)} or None, got {self.by!r}")
        if not 0 <= self.quantile <= 1:
            raise SonaValueError(f"quantile: expected a number in [0, 1], got {self.quantile!r}")
        if self.phi_threshold is not None and not 0 <= self.phi_threshold < math.inf:
            raise SonaValueError(f"phi_threshold: expected None or a finite number of at least 0, got {self.phi_threshold!r}")

    def select(self, dreams: Sequence[Dream]) -> list[Dream]:
        """
        Those that pass, in the order given.

        Raises
        ------
        SonaTypeError
            A dream without quality.
        """
        qualities = [dream.quality for dream in dreams if dream.quality is not None]
        if len(qualities) < len(dreams):
            raise SonaTypeError("dreams: expected dreams with a quality, as DreamEvaluator.evaluate gives them, got one without")
        passed = np.ones(len(dreams), np.bool_)
        if self.by is not None and dreams:
            values = np.array([getattr(quality, self.by) for quality in qualities])
            passed &= values >= np.quantile(values, self.quantile, method="lower")
        if self.phi_threshold is not None:
            passed &= np.array([quality.phi >= self.phi_threshold for quality in qualities], np.bool_)
        return [dream for dream, passes in zip(dreams, passed.tolist(), strict=True) if passes]


def frozen(memory: MemoryGraph | GraphSnapshot) -> GraphSnapshot:
    """What a graph holds now; a snapshot is its own."""
    return memory.snapshot() if hasattr(memory, "snapshot") else memory


def _visited(snapshot: GraphSnapshot, dreams: Sequence[Dream]) -> tuple[Visited, tuple[Longs, Longs, Longs]]:
    """The subgraphs, and for each proposed pair: number of its dream, the columns of its two nodes there."""
    length = max(len(dream.nodes) for dream in dreams)
    paths = np.full((len(dreams), length), -1, np.int64)
    for row, dream in zip(paths, dreams, strict=True):
        if not dream.nodes:
            raise SonaValueError("dreams: expected at least one node in each, got none")
        row[: len(dream.nodes)] = dream.nodes
    taken = paths >= 0
    paths[taken] = snapshot.positions(paths[taken])
    visited = Visited.of(snapshot.csr(), paths)
    batch = np.repeat(np.arange(len(dreams)), [len(dream.proposals) for dream in dreams])
    pairs = np.array([pair for dream in dreams for pair in dream.proposals], np.int64).reshape(-1, 2)
    u, v = (visited.locate(batch, snapshot.positions(column)) for column in pairs.T)
    if (u < 0).any() or (v < 0).any():
        raise SonaValueError("dreams: expected proposals of pairs of nodes that the dream visited, got another")
    return visited, (batch, u, v)


def _novelty(dreams: Sequence[Dream], members: tuple[Longs, Longs, Longs], cosine: Doubles, weight: Doubles) -> Doubles:
    batch, u, v = members
    new = np.where(weight[batch, u, v] > 0, 0.0, 1 - cosine[batch, u, v].clip(0, 1))
    count = np.bincount(batch, minlength=len(dreams))
    return np.bincount(batch, weights=new, minlength=len(dreams)) / np.maximum(count, 1)


def _coherence(visited: Visited, cosine: Doubles) -> Doubles:
    a, b = visited.path[:, :-1], visited.path[:, 1:]
    steps = (a >= 0) & (b >= 0)
    batch = np.arange(len(a))[:, None]
    total = (cosine[batch, a, b] * steps).sum(axis=1)
    mean: Doubles = total / np.maximum(steps.sum(axis=1), 1)
    return mean.clip(0, 1)
