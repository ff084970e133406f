"""Search results that learn from clicks: documents, rankings, and the guard that stands behind them."""

from sona.ranker.ranker import Ranker, Ranking

__all__ = ["Ranker", "Ranking"]
