"""What keeps old tasks: detectors of a change."""

from sona.ewc.boundary import Adwin, PageHinkley

__all__ = ["Adwin", "PageHinkley"]
