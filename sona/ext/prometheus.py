"""A router's or engine's counters for Prometheus. Needs the extra `prometheus`."""

from collections.abc import Iterator, Mapping
from typing import Any

from sona.engine import SonaEngine
from sona.errors import MissingExtraError, SonaTypeError
from sona.loops.observed import STATUSES
from sona.router import Router

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
except ImportError as error:
    raise MissingExtraError("sona.ext.prometheus needs prometheus-client: pip install 'sona[prometheus]'") from error

# (path in stats(), what it is); counters only grow while a process lives
_ROUTER_COUNTERS = (
    ("requests", "Requests that were routed"),
    ("learned", "Rewards that were learned"),
    ("revised", "Rewards that replaced an earlier one"),
    ("unknown_feedback", "Rewards for decisions that are not known"),
    ("rejected", "Rewards that were refused"),
    ("unrecorded", "Decisions that the store did not take"),
    ("drift.alarms", "Alarms: rewards fell behind what was expected"),
)
_ROUTER_GAUGES = (
    ("arms", "Arms that are open"),
    ("confidence", "Calibration: rewards over what was expected of them, at most 1"),
    ("surprise", "Running mean of reward minus what was expected"),
    ("trust", "Trust in the frozen model; below 1 it is being unlearned"),
    ("state_bytes", "Bytes of what was learned"),
    ("pending_bytes", "Bytes of decisions that wait for a reward"),
)
_ENGINE_COUNTERS = (
    ("loop_a.processed", "Trajectories that the instant loop took"),
    ("loop_a.dropped", "Trajectories that it had no room for"),
    ("store.written", "Rows that reached the store"),
    ("store.failed", "Groups that could not be written when they were due"),
    ("store.dropped", "Rows that were lost because the store did not take them"),
)
_ENGINE_GAUGES = (
    ("enabled", "1: learning and serving what was learned; 0: the kill switch is thrown"),
    ("store.leading", "1: this process learns for the store"),
    ("open_trajectories", "Trajectories begun and not ended"),
)


class Collector:
    """
    What `prometheus_client.REGISTRY.register` takes: each scrape reads `stats()` once, nothing is counted on the request's path.

    Parameters
    ----------
    source : Router or SonaEngine
    labels : mapping of str to str, optional
        On every sample, where one process has several: {"router": "faq"}.

    Examples
    --------
    >>> prometheus_client.REGISTRY.register(Collector(router))  # doctest: +SKIP

    Thread-safety
    -------------
    `collect`: as `stats` of the source; with a router, any thread. After the source has been closed it yields nothing.
    """

    def __init__(self, source: Router | SonaEngine, *, labels: Mapping[str, str] | None = None) -> None:
        if not isinstance(source, Router | SonaEngine):
            raise SonaTypeError(f"source: expected a Router or a SonaEngine, got {type(source).__name__}")
        self._source = source
        self._labels = dict(labels or {})

    def describe(self) -> list[Metric]:
        """Nothing: names are known at the first scrape, and registering reads no statistics."""
        return []

    def collect(self) -> Iterator[Metric]:
        """One family per counter and gauge that the source has."""
        engine = self._source.engine if isinstance(self._source, Router) else self._source
        if engine._closed:
            return
        stats = self._source.stats()
        if isinstance(self._source, Router):
            yield from self._families(stats, _ROUTER_COUNTERS, CounterMetricFamily)
            yield from self._families(stats, _ROUTER_GAUGES, GaugeMetricFamily)
            weights = GaugeMetricFamily(
                "sona_guard_weight", "Share of each model where their choices differ", labels=[*self._labels, "model"]
            )
            for model, weight in (stats["guard_weights"] or {}).items():
                weights.add_metric([*self._labels.values(), model], float(weight))
            yield weights
            yield from self._latencies(stats["latency"])
            stats = stats["engine"]
        yield from self._families(stats, _ENGINE_COUNTERS, CounterMetricFamily)
        yield from self._families(stats, _ENGINE_GAUGES, GaugeMetricFamily)
        yield from self._work(stats["work"])

    def _work(self, stats: Mapping[str, Mapping[str, float]]) -> Iterator[Metric]:
        """Cycles, decisions of trials and publications, with the label `work`."""
        names, values = [*self._labels, "work"], list(self._labels.values())
        count = CounterMetricFamily("sona_work", "Cycles, decisions of trials and publications that ended so", labels=[*names, "status"])
        seconds = GaugeMetricFamily("sona_work_seconds", "What the last one that was not skipped took", labels=names)
        at = GaugeMetricFamily("sona_work_ended_timestamp_seconds", "When it was over, Unix time", labels=names)
        for work, about in stats.items():
            for status in STATUSES:
                count.add_metric([*values, work, status], about[status])
            if "at" in about:
                seconds.add_metric([*values, work], about["seconds"])
                at.add_metric([*values, work], about["at"])
        yield from (count, seconds, at)

    def _latencies(self, latency: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
        for name, about in (("route", "Seconds of every 16th choice"), ("learn", "Seconds of every 16th reward learned")):
            timed = latency[name]
            buckets = [*((f"{bound:.4g}", float(count)) for bound, count in timed["buckets"]), ("+Inf", float(timed["count"]))]
            metric = HistogramMetricFamily(f"sona_{name}_seconds", about, labels=list(self._labels))
            metric.add_metric(list(self._labels.values()), buckets=buckets, sum_value=timed["seconds"])
            yield metric

    def _families(self, stats: Mapping[str, Any], wanted: tuple[tuple[str, str], ...], family: Any) -> Iterator[Metric]:
        for path, about in wanted:
            value: Any = stats
            for key in path.split("."):
                value = value.get(key) if isinstance(value, Mapping) else None
            if value is not None:
                metric = family(f"sona_{path.replace('.', '_')}", about, labels=list(self._labels))
                metric.add_metric(list(self._labels.values()), float(value))
                yield metric
