"""What a process that serves says of itself: its Prometheus endpoint, read as text. See `sona.ext.prometheus`."""

from __future__ import annotations

import http.client
import re
from typing import Any
from urllib.parse import urlsplit

from sona.errors import SonaValueError

HOSTS = ("127.0.0.1", "localhost", "::1")
TIMEOUT = 2.0  # s
MOST = 1 << 20  # bytes of an answer
_SAMPLE = re.compile(r'^(sona_\w+?)(?:\{((?:[^"}]|"(?:[^"\\]|\\.)*")*)\})? (\S+)')
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Endpoint:
    """
    A Prometheus endpoint on this machine.

    Parameters
    ----------
    url : str
        ``http://127.0.0.1:PORT/metrics``; loopback only, so that a page about a store never leads elsewhere.

    Raises
    ------
    SonaValueError
        An address of another kind.
    """

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            self._host, self._port = parts.hostname, parts.port
        except ValueError as error:
            raise SonaValueError(f"metrics: expected http://127.0.0.1:PORT/metrics, got {url!r}: {error}") from None
        if parts.scheme != "http" or self._host not in HOSTS or parts.username is not None:
            raise SonaValueError(f"metrics: expected http:// and one of the hosts {', '.join(HOSTS)}, got {url!r}")
        self.url = url
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def read(self) -> dict[str, Any]:
        """Its samples whose names begin with ``sona_``: "values" and "histograms" by name and labels, or "error"."""
        connection = http.client.HTTPConnection(self._host or "", self._port, timeout=TIMEOUT)
        try:
            connection.request("GET", self._target, headers={"Accept": "text/plain"})
            answer = connection.getresponse()
            text = answer.read(MOST).decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            return {"url": self.url, "values": [], "histograms": [], "error": f"cannot be read: {error}"}
        finally:
            connection.close()
        if answer.status != 200:
            return {"url": self.url, "values": [], "histograms": [], "error": f"expected status 200, got {answer.status}"}
        return {"url": self.url, **samples(text), "error": None}


def samples(text: str) -> dict[str, Any]:
    """
    The sona's of an exposition.

    values: [name, labels, number]; histograms: {name, labels, bars: [[upper bound or None, how many up to it and above the one before]]}.
    """
    values: list[list[Any]] = []
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for line in text.splitlines():
        matched = _SAMPLE.match(line)
        if matched is None:
            continue
        name, labels = matched[1], {key: _unescaped(value) for key, value in _LABEL.findall(matched[2] or "")}
        try:
            number = float(matched[3])
        except ValueError:
            continue
        bound = labels.pop("le", None)
        shown = ", ".join(f"{key} {value}" for key, value in labels.items())
        if name.endswith("_bucket") and bound is not None:
            base = name.removesuffix("_bucket")
            about = found.setdefault((base, shown), {"name": base, "labels": shown, "bars": []})
            about["bars"].append([float("inf") if bound == "+Inf" else float(bound), number])
        else:
            values.append([name, shown, number])
    for about in found.values():
        below = 0.0
        bars = sorted(about["bars"])
        about["bars"] = []
        for upper, up_to in bars:
            about["bars"].append([None if upper == float("inf") else upper, max(up_to - below, 0.0)])
            below = max(up_to, below)
    of_histograms = {f"{base}{suffix}" for base, _ in found for suffix in ("_sum", "_count", "_created")}
    return {"values": [row for row in values if row[0] not in of_histograms], "histograms": list(found.values())}


def _unescaped(value: str) -> str:
    return re.sub(r"\\(.)", lambda found: "\n" if found[1] == "n" else found[1], value)
