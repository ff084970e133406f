"""What an operator sees of a router: events in the log, each documented; counts; watchers; spans."""

import ast
import functools
import io
import json
import logging
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RunPython
from stores import Place

import sona
from sona.cli import main
from sona.errors import SonaStoreError, SonaValueError
from sona.log import JsonFormatter
from sona.loops.background import BackgroundLoopConfig
from sona.loops.gate import GateConfig
from sona.loops.journal import QUIET_SECONDS, Journal

ROOT = Path(__file__).parents[1]
DIM, ARMS = 16, 4
LEVELS = ("debug", "info", "warning", "error", "exception")
QUICK = BackgroundLoopConfig(min_trajectories=50)


def streamed(router: sona.Router, rounds: int, seed: int = 0) -> sona.Router:
    rng = np.random.default_rng(seed)
    for x in rng.standard_normal((rounds, DIM)):
        decision = router.route(x)
        router.feedback(decision.id, float(decision.arm == int(np.argmax(x[:ARMS]))))
    return router


def new_router(store: Any = None, background: BackgroundLoopConfig = QUICK, **options: Any) -> sona.Router:
    return sona.Router(list(range(ARMS)), dim=DIM, store=store, background=background, **options)


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.event for record in caplog.records if hasattr(record, "event")]


def fields(caplog: pytest.LogCaptureFixture, event: str) -> dict[str, Any]:
    (record,) = (record for record in caplog.records if getattr(record, "event", None) == event)
    return vars(record)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, logger="sona")
    return caplog


# ---- the list of events ----


def calls() -> Iterator[tuple[Path, ast.Module, ast.Call]]:
    """Every call of a method of a module's `log`."""
    for path in sorted((ROOT / "sona").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if not re.search(rf"\.({'|'.join(LEVELS)})\(", text):
            continue
        tree, own = ast.parse(text), "\nlog = logging.getLogger(__name__)\n" in text
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS):
                continue
            if (owner := ast.unparse(node.func.value)) in ("log", "logger", "logging"):
                assert owner == "log", f"{path.name}: {ast.unparse(node)}"
                assert own, f"{path.name} has no logger of its own name"
                yield path, tree, node


def extra_of(call: ast.Call, tree: ast.Module) -> dict[str, ast.expr | None]:
    """Names in `extra`; those of `**about` are looked up in the assignment of that name which stands before the call."""
    (given,) = (keyword.value for keyword in call.keywords if keyword.arg == "extra")
    assert isinstance(given, ast.Dict), ast.unparse(call)
    found: dict[str, ast.expr | None] = {}
    for key, value in zip(given.keys, given.values, strict=True):
        if isinstance(key, ast.Constant):
            found[key.value] = value
            continue
        assert isinstance(value, ast.Name)
        before = [
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and node.lineno < call.lineno and ast.unparse(node.targets[0]).split(",")[0] == value.id
        ]
        named = max(before, key=lambda node: node.lineno)
        assert isinstance(named, ast.Dict), ast.unparse(call)
        found |= {key.value: None for key in named.keys if isinstance(key, ast.Constant)}
    return found


@functools.cache
def in_the_code() -> dict[str, tuple[str, set[str]]]:
    """Event -> level, names of its fields; the same wherever it is said."""
    found: dict[str, tuple[str, set[str]]] = {}
    for path, tree, call in calls():
        where = f"{path.relative_to(ROOT)}:{call.lineno}"
        assert isinstance(call.func, ast.Attribute)
        extra = extra_of(call, tree)
        event = extra.pop("event")
        assert isinstance(event, ast.Constant), f"{where}: the name of an event is no constant"
        level = "error" if call.func.attr == "exception" else call.func.attr
        assert found.setdefault(event.value, (level, set(extra))) == (level, set(extra)), where
    return found


def documented() -> dict[str, tuple[str, set[str]]]:
    rows = re.findall(r"^\| `([a-z]+\.[a-z_]+)` \| (\w+) \| (.*?) \|", (ROOT / "docs/observe.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len({event for event, _, _ in rows}) == len(rows)
    return {event: (level, set(re.findall(r"`(\w+)`", names))) for event, level, names in rows}


def test_every_event_of_the_code_is_in_the_document_with_its_level_and_fields_and_no_other():
    assert documented() == in_the_code()


def test_the_walk_sees_the_events_that_matter():
    assert {"lease.lost", "gate.decided", "version.published", "journal.recovered", "store.write_failed"} <= in_the_code().keys()
    assert in_the_code()["version.published"] == ("info", {"learner", "version", "number", "cause"})


def test_no_field_has_the_name_of_one_that_every_record_has():
    taken = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "event", "time", "level", "logger", "traceback"}
    assert {name for _, names in in_the_code().values() for name in names} & taken == set()


# ---- what is said ----


def test_a_store_that_is_used_again_says_what_came_back(said: pytest.LogCaptureFixture, tmp_path: Path):
    with new_router(tmp_path / "s.db") as router:
        streamed(router, 60)
        router.flush()
    assert events(said)[0] == "lease.taken"
    assert "journal.recovered" not in events(said)
    assert events(said)[-1] == "lease.released"
    said.clear()
    with new_router(tmp_path / "s.db"):
        found = fields(said, "journal.recovered")
        assert (found["learner"], found["applied"], found["replayed"]) == ("default", 60, 0)
        assert (found["name"], found["levelname"]) == ("sona.loops.journal", "INFO")


def test_after_a_crash_the_rewards_that_are_learned_again_are_counted(
    said: pytest.LogCaptureFixture, run_python: RunPython, tmp_path: Path
):
    script = f"""
        import os, sys
        sys.path.insert(0, {str(ROOT / "tests")!r})
        from test_observe import new_router, streamed
        router = streamed(new_router("s.db"), 25)
        router.flush()
        os._exit(0)
    """
    run_python(script)
    with new_router(tmp_path / "s.db"):
        assert fields(said, "journal.recovered")["replayed"] == 25


def test_of_two_processes_one_leads_and_the_other_says_when_it_takes_over(said: pytest.LogCaptureFixture, place: Place):
    one, two = place.open(), place.open()
    with one, two:
        first, second = new_router(one), new_router(two)
        assert events(said).count("lease.taken") == 1
        first.close()
        assert second.engine.journal is not None
        second.engine.journal.poll()
        assert events(said).count("lease.taken") == 2
        assert events(said).count("lease.released") == 1
        second.close()


def test_a_cycle_says_what_it_did_and_so_do_gate_trial_and_what_is_served(said: pytest.LogCaptureFixture):
    with streamed(new_router(background=BackgroundLoopConfig(min_trajectories=50, gate=GateConfig(n_min=10, alpha=0.4))), 400) as router:
        result = router.background_learn()
        cycle, gate = fields(said, "background.cycle"), fields(said, "gate.decided")
        assert (cycle["status"], cycle["processed"], cycle["patterns"]) == (
            "completed",
            result.trajectories_processed,
            result.patterns_extracted,
        )
        assert cycle["version"] == gate["version"] == result.version.id
        assert gate["verdict"] == result.verdict == "undecided"
        assert gate["reason"] == result.reason
        assert fields(said, "trial.began")["version"] == result.version.id
        router.engine.stop_trial()
        assert fields(said, "trial.stopped")["number"] == result.version.number
        router.engine.publish(result.version)
        assert fields(said, "version.published")["cause"] == "publish"
        said.clear()
        router.engine.rollback(1)
        assert fields(said, "version.published")["cause"] == "rollback"
        assert fields(said, "version.published")["number"] == 1
        said.clear()
        router.deep_learn()
        assert fields(said, "deep.cycle")["status"] == "completed"
        router.engine.enabled = False
        router.engine.enabled = False
        assert events(said).count("learning.switched") == 1
        said.clear()
        router.background_learn()
        assert fields(said, "background.cycle")["status"] == "skipped: learning is switched off"


def test_a_trial_that_is_decided_says_its_verdict_and_what_is_served(said: pytest.LogCaptureFixture):
    with streamed(new_router(background=BackgroundLoopConfig(min_trajectories=50)), 400) as router:
        router.background_learn()
        for verdict in ("accept", "reject"):
            said.clear()
            router.engine.start_trial(1)
            trial = router.engine._learners.trial
            assert trial is not None
            trial.gate._duel._verdict = verdict  # the duel itself has tests of its own
            streamed(router, 1)
            assert fields(said, "gate.decided")["verdict"] == verdict
            assert ("version.published" in events(said)) == (verdict == "accept")
        assert router.engine.observed.stats()["trial_decision"]["completed"] == 2


def test_a_drift_alarm_is_a_warning(said: pytest.LogCaptureFixture):
    with new_router(drift=True) as router:
        streamed(router, 600)
        rng = np.random.default_rng(1)
        for x in rng.standard_normal((600, DIM)):
            router.feedback(router.route(x).id, 0.0)
        assert router.stats()["drift"]["alarms"] >= 1
        assert fields_of_all(said, "drift.alarm")[-1]["alarms"] == router.stats()["drift"]["alarms"]


def fields_of_all(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if getattr(record, "event", None) == event]


def test_a_store_that_cannot_be_written_is_said_once_a_while_and_once_when_it_works_again(said: pytest.LogCaptureFixture, tmp_path: Path):
    now = [0.0]
    store = sona.SqliteStore(tmp_path / "s.db", busy_timeout_ms=1)
    with store, sona.Router(["a", "b"], dim=2, store=store) as router:
        journal = router.engine.journal
        assert journal is not None
        journal._clock = lambda: now[0]
        with closing(sqlite3.connect(tmp_path / "s.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for _ in range(20):
                decision = router.route([1.0, 0.0])
                with pytest.raises(SonaStoreError):
                    router.feedback(decision.id, 1.0, sync=True)
                journal._log_failure(OSError("the disk is full"))
            assert events(said).count("store.write_failed") == 1
            now[0] += QUIET_SECONDS
            journal._log_failure(OSError("the disk is full"))
            assert events(said).count("store.write_failed") == 2
            assert fields_of_all(said, "store.write_failed")[-1]["error"] == "the disk is full"
            assert fields_of_all(said, "store.write_failed")[-1]["spooled"] > 0
            other.execute("ROLLBACK")
        router.flush()


def test_a_store_that_cannot_be_read_is_said_once_a_while(said: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = [0.0]

    def fail(self: Journal) -> None:
        raise SonaStoreError("gone")

    with new_router(tmp_path / "s.db") as router:
        journal = router.engine.journal
        assert journal is not None
        journal._clock = lambda: now[0]
        with monkeypatch.context() as broken:
            broken.setattr(Journal, "poll", fail)
            for now[0] in np.linspace(1e6, 1e6 + 2 * QUIET_SECONDS - 1, 200):
                router.tick()
        assert events(said).count("store.unreadable") == 2


def test_a_warning_reaches_who_has_configured_nothing_and_news_do_not(run_python: RunPython):
    script = f"""
        import sys
        sys.path.insert(0, {str(ROOT / "tests")!r})
        from test_observe import new_router, streamed
        router = streamed(new_router("s.db"), 5)
        router.engine.journal._log_failure(OSError("the disk is full"))
        router.close()
    """
    done = run_python(script)
    assert re.fullmatch(r"store: the disk is full; \d+ rows wait, 0 were dropped\n", done.stderr)


def test_no_name_of_an_arm_or_a_source_and_no_reward_is_said(lines: Callable[[], list[dict[str, Any]]], tmp_path: Path):
    secret, reward = "alice@example.org", 0.123456789
    arms = {secret: np.eye(DIM)[0], "b": np.eye(DIM)[1]}
    with sona.Router(arms, store=tmp_path / "s.db", background=QUICK, sources=sona.SourceLimits()) as router:
        for x in np.random.default_rng(0).standard_normal((60, DIM)):
            router.feedback(router.route(x).id, reward, source=secret)
        version = router.background_learn().version
        router.deep_learn()
        router.engine.rollback(version)
        router.forget_source(secret)
    found = lines()
    assert {"gate.decided", "background.cycle", "deep.cycle", "version.published", "source.forgotten"} <= {line["event"] for line in found}
    assert not [line for line in found for word in ("alice", "0.1234") if word in json.dumps(line)]


# ---- as JSON ----


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    stream, logger = io.StringIO(), logging.getLogger("sona")
    handler, level = logging.StreamHandler(stream), logger.level
    handler.setFormatter(JsonFormatter())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_a_record_is_a_line_of_json_with_its_fields(lines: Callable[[], list[dict[str, Any]]]):
    with streamed(new_router(), 60) as router:
        router.background_learn()
    (cycle,) = (line for line in lines() if line["event"] == "background.cycle")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", cycle.pop("time"))
    assert isinstance(cycle.pop("elapsed"), float)
    assert cycle == {
        "level": "info",
        "logger": "sona.engine",
        "event": "background.cycle",
        "message": "background cycle: completed",
        "learner": "default",
        "status": "completed",
        "processed": 60,
        "patterns": cycle["patterns"],
        "verdict": "undecided",
        "version": cycle["version"],
    }


def test_whatever_a_record_has_becomes_one_line(lines: Callable[[], list[dict[str, Any]]]):
    log = logging.getLogger("sona.other")
    log.warning("two\nlines of %s", "ü\u2028", extra={"share": float("nan"), "where": Path("x"), "event": None})
    try:
        raise ValueError("no")
    except ValueError:
        log.exception("failed")
    first, second = lines()
    assert (first["message"], first["share"], first["where"], first["event"]) == ("two\nlines of ü\u2028", None, "x", None)
    assert second["traceback"].endswith("ValueError: no")


def test_the_command_line_says_on_request_what_happens(run_python: RunPython):
    ring = "from sona.cli import main; raise SystemExit(main('learn --ring r --weights w --store s.db --dim 4 --once --json'.split()))"
    done = run_python(ring, SONA_LOG="json")
    assert {"lease.taken", "lease.released"} <= {json.loads(line)["event"] for line in done.stderr.splitlines()}
    assert json.loads(done.stdout)["saves"] == 1


@pytest.mark.parametrize(("how", "said"), [("", ""), ("text", r"\S+ \S+ INFO sona\.loops\.journal: news\n")])
def test_without_a_word_it_says_no_news(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], how: str, said: str):
    logger = logging.getLogger("sona")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    monkeypatch.setenv("SONA_LOG", how)
    assert main(["doctor"]) == main(["doctor"]) == 0
    logging.getLogger("sona.loops.journal").info("news")
    assert re.fullmatch(said, capfd.readouterr().err)


def test_a_way_to_say_it_that_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("SONA_LOG", "loud")
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err == "sona: error: SONA_LOG: expected 'text' or 'json', got 'loud'\n"


# ---- watchers ----


class Watch:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def began(self, work: str) -> int:
        self.seen.append(work)
        return len(self.seen)

    def ended(self, token: int, result: Any) -> None:
        self.seen.append((token, type(result).__name__))

    def failed(self, token: int, error: BaseException) -> None:
        self.seen.append((token, type(error).__name__))


class Broken(Watch):
    def began(self, work: str) -> int:
        raise RuntimeError("began")


class BrokenAtTheEnd(Watch):
    def ended(self, token: int, result: Any) -> None:
        raise RuntimeError("ended")

    failed = ended


def test_a_watcher_sees_each_piece_of_work_and_none_can_stop_it(said: pytest.LogCaptureFixture):
    watch = Watch()
    with streamed(new_router(), 60) as router:
        for watcher in (Broken(), watch, BrokenAtTheEnd(), watch):
            router.engine.observed.add(watcher)
        result = router.background_learn()
        assert result.status == "completed"
        router.engine.publish(result.version)
        with pytest.raises(SonaValueError, match="99"):
            router.engine.rollback(99)
        assert watch.seen == ["background_cycle", (1, "BackgroundResult"), "publish", (3, "Version"), "publish", (5, "SonaValueError")]
        assert events(said).count("watcher.failed") == 6
        router.engine.observed.remove(watch)
        router.background_learn()
        assert len(watch.seen) == 6


def test_work_is_counted_by_how_it_ended():
    with new_router() as router:
        router.background_learn()
        assert router.engine.stats()["work"]["background_cycle"] == {"completed": 0, "cut": 0, "skipped": 1, "failed": 0}
        streamed(router, 60)
        router.background_learn()
        router.engine.deep_learn(duration=0.0)
        with pytest.raises(SonaValueError):
            router.engine.deep_learn(duration=-1.0)
        found = router.engine.stats()["work"]
        assert {name: found["background_cycle"][name] for name in ("completed", "skipped", "failed")} == {
            "completed": 1,
            "skipped": 1,
            "failed": 0,
        }
        assert 0 < found["background_cycle"]["seconds"] < 60
        assert (found["deep_cycle"]["cut"], found["deep_cycle"]["failed"]) == (1, 1)


# ---- spans ----


@pytest.fixture
def spans() -> tuple[Any, Callable[[], list[Any]]]:
    """A provider, and what has ended."""
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    provider, exporter = TracerProvider(shutdown_on_exit=False), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, lambda: list(exporter.get_finished_spans())


def test_cycles_become_spans_with_what_came_of_them(spans: tuple[Any, Callable[[], list[Any]]]):
    from sona.ext.opentelemetry import instrument

    provider, ended = spans
    with streamed(new_router(name="faq"), 60) as router:
        instrument(router, tracer_provider=provider)
        end = instrument(router, tracer_provider=provider)  # once
        result = router.background_learn()
        deep = router.deep_learn()
        router.background_learn()
        router.engine.publish(result.version)
        end()
        router.background_learn()
    background, dreams, skipped, publish = ended()
    assert background.name == "sona.background_cycle"
    assert dict(background.attributes) == {
        "sona.learner": "faq",
        "sona.status": "completed",
        "sona.elapsed": result.elapsed,
        "sona.processed": 60,
        "sona.patterns": result.patterns_extracted,
        "sona.verdict": "undecided",
        "sona.reason": result.reason,
        "sona.version": result.version.id,
    }
    page = (ROOT / "docs/observe.md").read_text(encoding="utf-8")
    for span in (background, dreams, publish):
        (row,) = re.findall(rf"^\| `{span.name.removeprefix('sona.')}` \| ([^;|:]*)", page, re.MULTILINE)
        assert {f"sona.{name}" for name in re.findall(r"`(\w+)`", row)} == set(span.attributes)
    assert background.status.is_ok or background.status.status_code.name == "UNSET"
    assert background.instrumentation_scope.name == "sona"
    assert (dreams.name, dreams.attributes["sona.dreams"]) == ("sona.deep_cycle", deep.dreams_generated)
    assert skipped.attributes["sona.status"].startswith("skipped: insufficient trajectories")
    assert "sona.verdict" not in skipped.attributes
    assert (publish.name, publish.attributes["sona.version"]) == ("sona.publish", result.version.id)


def test_an_error_is_in_the_span_and_still_raised(spans: tuple[Any, Callable[[], list[Any]]], monkeypatch: pytest.MonkeyPatch):
    from opentelemetry import trace

    from sona.ext.opentelemetry import instrument

    provider, ended = spans
    with streamed(new_router(), 60) as router:
        instrument(router.engine, tracer_provider=provider)

        def fail(*_: object, **__: object) -> None:
            with trace.get_tracer("db", tracer_provider=provider).start_as_current_span("query"):
                raise SonaStoreError("the disk is full")

        monkeypatch.setattr(router.engine.loop_b.patterns, "learn", fail)
        with trace.get_tracer("app", tracer_provider=provider).start_as_current_span("request"), pytest.raises(SonaStoreError):
            router.background_learn()
    query, cycle, request = ended()
    assert cycle.status.status_code is trace.StatusCode.ERROR
    assert cycle.status.description == "SonaStoreError: the disk is full"
    assert [event.name for event in cycle.events] == ["exception"]
    assert query.parent.span_id == cycle.context.span_id  # what is called inside of the cycle
    assert cycle.parent.span_id == request.context.span_id
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_another_source_is_refused():
    pytest.importorskip("opentelemetry")
    from sona.ext.opentelemetry import instrument

    with pytest.raises(sona.SonaTypeError, match="expected a Router or a SonaEngine, got str"):
        instrument("router")  # type: ignore[arg-type]


def test_without_the_package_the_error_names_the_command():
    hide = "import sys, sona; sys.modules['opentelemetry'] = None"
    script = f"{hide}\ntry:\n    import sona.ext.opentelemetry\nexcept sona.SonaError as error:\n    print(error)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "sona.ext.opentelemetry needs opentelemetry-api: pip install 'sona[opentelemetry]'"
