"""An empty figure, where matplotlib is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sona.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def require_matplotlib() -> None:
    """MissingExtraError where it is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise MissingExtraError("figures need matplotlib: pip install 'sona[plot]'") from None


def blank(width: float = 10.5, height: float = 4.4) -> Figure:
    """A figure of that many inches; MissingExtraError without matplotlib."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain(axes: Axes, title: str) -> None:
    """A title, a faint grid and no box around."""
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
