"""What a policy is worth, from plain arrays: regret of a stream, off-policy estimates from logged decisions, what tasks were kept."""

from sona.metrics.offpolicy import Estimate, doubly_robust, ips, replay_estimate, snips
from sona.metrics.streams import cumulative_regret, regret, rolling_mean
from sona.metrics.tasks import (
    TaskSummary,
    average_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    own_task_accuracy,
    task_summary,
)

__all__ = [
    "Estimate",
    "TaskSummary",
    "average_accuracy",
    "backward_transfer",
    "cumulative_regret",
    "doubly_robust",
    "forgetting",
    "forward_transfer",
    "ips",
    "own_task_accuracy",
    "regret",
    "replay_estimate",
    "rolling_mean",
    "snips",
    "task_summary",
]
