"""A page about a store, for the machine that it is on: `sona dashboard`."""

from sona.report.dashboard.data import Board
from sona.report.dashboard.server import Dashboard

__all__ = ["Board", "Dashboard"]
