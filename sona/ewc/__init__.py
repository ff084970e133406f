"""What keeps old tasks: elastic weight consolidation, and detectors of a change."""

from sona.ewc.boundary import Adwin, PageHinkley
from sona.ewc.ewcpp import EwcPlusPlus, TaskFisher
from sona.ewc.lowrank import LowRankEwc, Pull, TaskFactors
from sona.ewc.rule import EwcConfig

__all__ = ["Adwin", "EwcConfig", "EwcPlusPlus", "LowRankEwc", "PageHinkley", "Pull", "TaskFactors", "TaskFisher"]
