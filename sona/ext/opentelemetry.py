"""Spans of cycles, of trials that are decided and of versions that are published. Needs the extra `opentelemetry`."""

from collections.abc import Callable
from contextvars import Token
from typing import Any

from sona.adapters import Version
from sona.engine import SonaEngine
from sona.errors import MissingExtraError, SonaTypeError
from sona.loops.background import BackgroundResult
from sona.loops.deep import DeepResult
from sona.router import Router

try:
    from opentelemetry import context, trace
except ImportError as error:
    raise MissingExtraError("sona.ext.opentelemetry needs opentelemetry-api: pip install 'sona[opentelemetry]'") from error

from sona import __version__

_Held = tuple[trace.Span, Token[context.Context]]


def instrument(source: Router | SonaEngine, *, tracer_provider: trace.TracerProvider | None = None) -> Callable[[], None]:
    """
    Make a span of each background cycle, deep cycle, decision of a trial and publication of a version from now on.

    Parameters
    ----------
    source : Router or SonaEngine
    tracer_provider : opentelemetry.trace.TracerProvider, optional
        Default the global one.

    Returns
    -------
    callable
        Takes nothing; afterwards there are no more spans. A second `instrument` of the same source takes the place of the first.

    Raises
    ------
    SonaTypeError
        Another source.

    Notes
    -----
    The spans are `sona.background_cycle`, `sona.deep_cycle`, `sona.trial_decision` and `sona.publish`; docs/observe.md lists their
    attributes. What is called inside of one, such as queries of an instrumented database driver, becomes its child. Requests and rewards
    have none: they take microseconds.

    Thread-safety
    -------------
    Any thread.
    """
    engine = source.engine if isinstance(source, Router) else source
    if not isinstance(engine, SonaEngine):
        raise SonaTypeError(f"source: expected a Router or a SonaEngine, got {type(source).__name__}")
    for watcher in engine.observed.watchers:
        if isinstance(watcher, _Spans):
            engine.observed.remove(watcher)
    spans = _Spans(trace.get_tracer("sona", __version__, tracer_provider), engine.name)
    engine.observed.add(spans)
    return lambda: engine.observed.remove(spans)


class _Spans:
    """The watcher that makes them."""

    def __init__(self, tracer: trace.Tracer, learner: str) -> None:
        self._tracer, self._learner = tracer, learner

    def began(self, work: str) -> _Held:
        span = self._tracer.start_span(f"sona.{work}", attributes={"sona.learner": self._learner})
        return span, context.attach(trace.set_span_in_context(span))

    def ended(self, held: _Held, result: Any) -> None:
        span, token = held
        context.detach(token)
        span.set_attributes({f"sona.{name}": value for name, value in _attributes(result).items() if value is not None})
        span.end()

    def failed(self, held: _Held, error: BaseException) -> None:
        span, token = held
        context.detach(token)
        span.record_exception(error)
        span.set_status(trace.Status(trace.StatusCode.ERROR, f"{type(error).__name__}: {error}"))
        span.end()


def _attributes(result: Any) -> dict[str, str | int | float | None]:
    """None: the result has none of it."""
    if isinstance(result, BackgroundResult):
        return {
            "status": result.status,
            "elapsed": result.elapsed,
            "processed": result.trajectories_processed,
            "patterns": result.patterns_extracted,
            "verdict": result.verdict,
            "reason": result.reason or None,
            "version": None if result.version is None else result.version.id,
        }
    if isinstance(result, DeepResult):
        return {
            "status": result.status,
            "elapsed": result.elapsed,
            "dreams": result.dreams_generated,
            "integrated": result.dreams_integrated,
            "strengthened": result.patterns_strengthened,
            "pruned": result.patterns_pruned,
            "nodes": result.nodes,
            "edges": result.edges,
        }
    if isinstance(result, Version):
        return {"version": result.id, "verdict": result.verdict, "reason": result.reason or None}
    return {}
