"""The patterns station: what requests have in common, which arm does well on them, and what comes next."""

from sona.patterns.bank import ReasoningBank
from sona.patterns.config import PatternConfig
from sona.patterns.hierarchy import PatternHierarchy
from sona.patterns.index import ExactIndex, Index, UsearchIndex
from sona.patterns.pattern import LearnedPattern, PatternType
from sona.patterns.prior import retrieval_prior
from sona.patterns.statistics import PatternStatistics
from sona.patterns.temporal import Transitions
from sona.patterns.verdict import Verdict, verdicts

__all__ = [
    "ExactIndex",
    "Index",
    "LearnedPattern",
    "PatternConfig",
    "PatternHierarchy",
    "PatternStatistics",
    "PatternType",
    "ReasoningBank",
    "Transitions",
    "UsearchIndex",
    "Verdict",
    "retrieval_prior",
    "verdicts",
]
