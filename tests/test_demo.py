"""Promises of the demo's parts: worlds that do not leak, a fair LinUCB, figures, tables, progress."""

import functools
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sona import MissingExtraError, SonaError, SonaValueError
from sona.demo import run_demo, run_story
from sona.demo.linucb import LinUCB
from sona.demo.text import demo_text, story_text
from sona.demo.world import HELD_OUT, LABELLED, WORLDS, World, make_world
from sona.progress import LINE_S, Progress
from sona.report import as_json, write_json
from sona.report.plots import STYLES, Curve, draw, joined, rolling_accuracy
from sona.report.table import aligned, one_line, shown, size
from sona.simulate import Frozen, Interrupted, Latency, cpu_name, curves, play, summaries_of, summarise

# ---- worlds ----


@pytest.mark.parametrize("name", WORLDS)
def test_held_out_labelled_and_streamed_digits_are_disjoint(name: Any) -> None:
    world = make_world(name, seed=4)
    assert len(world.held_x) == HELD_OUT == 449
    assert len(world.x) == 1797 - HELD_OUT - 10 * LABELLED
    streamed, held = ({row.tobytes() for row in rows} for rows in (world.x, world.held_x))
    assert len(streamed & held) <= 2  # the data set holds a few identical images
    for rows in (world.x, world.held_x, world.arms):
        assert rows.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_worlds_are_wrong_in_the_way_they_say() -> None:
    frozen = {name: np.mean([accuracy_of_frozen(name, seed) for seed in range(3)]) for name in WORLDS}
    assert frozen["few"] > 0.7 > frozen["shift"] > 0.45 > frozen["perm"] - 0.1
    assert frozen["rand"] < 0.3
    few, shift, perm = (make_world(name, 1) for name in ("few", "shift", "perm"))
    np.testing.assert_array_equal(few.arms, shift.arms)
    assert ((few.x != shift.x).any(axis=0)).sum() <= 32
    assert (few.arms != perm.arms).any(axis=1).sum() == 5
    assert {row.tobytes() for row in few.arms} == {row.tobytes() for row in perm.arms}


def accuracy_of_frozen(name: Any, seed: int) -> float:
    world = make_world(name, seed)
    return float(np.mean(Frozen(world.arms).predict(world.held_x) == world.held_y))


@given(start=st.integers(0, 5000), count=st.integers(1, 4000))
def test_a_stream_is_the_same_wherever_a_run_begins(start: int, count: int) -> None:
    world = make_world_once()
    np.testing.assert_array_equal(world.rows(start, count), world.rows(0, start + count)[start:])


@functools.cache
def make_world_once() -> World:
    return make_world("few", 0)


def test_each_pass_shows_every_row_once_in_another_order() -> None:
    world = make_world_once()
    size_ = len(world.x)
    first, second = world.rows(0, size_), world.rows(size_, size_)
    assert sorted(first) == sorted(second) == list(range(size_))
    assert (first != second).mean() > 0.9


def test_seeds_give_different_worlds_and_an_unknown_one_is_refused() -> None:
    assert (make_world("few", 0).arms != make_world("few", 1).arms).any()
    with pytest.raises(SonaValueError, match="few, shift, perm, rand, got 'flat'"):
        make_world("flat", 0)  # type: ignore[arg-type]


# ---- LinUCB ----


@given(seed=st.integers(0, 1000), alpha=st.floats(0, 1), ridge=st.floats(0.1, 2))
def test_linucb_is_ridge_regression_that_starts_at_the_arms(seed: int, alpha: float, ridge: float) -> None:
    rng = np.random.default_rng(seed)
    arms, x, reward = rng.standard_normal((3, 4)), rng.standard_normal((30, 4)), rng.random(30)
    policy = LinUCB(arms.astype(np.float32), alpha=alpha, ridge=ridge)
    precision = np.stack([ridge * np.eye(4)] * 3)
    target = ridge * arms
    for row, earned in zip(x, reward, strict=True):
        mean = np.stack([np.linalg.solve(p, t) for p, t in zip(precision, target, strict=True)])
        width = np.array([row @ np.linalg.solve(p, row) for p in precision])
        bound = mean @ row + alpha * np.sqrt(width)
        decision = policy.route(row.astype(np.float32))
        arm = policy.arm(decision)
        assert bound[arm] >= bound.max() - 1e-3
        policy.feedback(decision, earned)
        precision[arm] += np.outer(row, row)
        target[arm] += earned * row
    mean = np.stack([np.linalg.solve(p, t) for p, t in zip(precision, target, strict=True)])
    chosen = policy.predict(x.astype(np.float32))
    assert (np.take_along_axis(x @ mean.T, chosen[:, None], 1)[:, 0] >= (x @ mean.T).max(axis=1) - 1e-3).all()
    assert policy.state_bytes == 4 * (3 * 4 + 3 * 4 * 4)


# ---- playing and summing up ----


class Scripted:
    """Shows the arms that it was given, and notes the rewards."""

    name = "scripted"
    learns = True
    state_bytes = 7

    def __init__(self, arms: list[int], stop_at: int | None = None) -> None:
        self.arms = iter(arms)
        self.rewards: list[float] = []
        self.stop_at = stop_at

    def route(self, x: np.ndarray) -> int:
        if self.stop_at is not None and len(self.rewards) == self.stop_at:
            raise KeyboardInterrupt
        return next(self.arms)

    def arm(self, decision: int) -> int:
        return decision

    def feedback(self, decision: int, reward: float) -> None:
        self.rewards.append(reward)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return np.zeros(len(x), np.int64)


def test_only_the_shown_arm_is_paid() -> None:
    policy = Scripted([0, 1, 1, 0])
    traces = play([policy], np.zeros((3, 2), np.float32), np.array([0, 1, 2]), np.array([0, 0, 1, 2]))
    assert policy.rewards == traces["scripted"].reward.tolist() == [1, 0, 1, 0]
    assert (traces["scripted"].route_ns > 0).all()
    line = summarise(policy, traces["scripted"], np.zeros((4, 2), np.float32), np.array([0, 0, 0, 1]))
    assert (line.first, line.last, line.regret, line.held_out, line.state_bytes) == (0.5, 0.5, 2.0, 0.75, 7)
    assert summaries_of({"policies": {"scripted": line.as_json()}}) == {"scripted": line}


def test_an_interrupt_keeps_the_rounds_that_are_whole() -> None:
    traces: dict[str, Any] = {}
    with pytest.raises(Interrupted) as stop:
        play([Scripted([0] * 9, stop_at=3)], np.zeros((1, 2), np.float32), np.array([0]), np.zeros(9, np.int64), traces=traces)
    assert stop.value.rounds == 3
    assert traces["scripted"].cut(3).reward.tolist() == [1, 1, 1]


def test_accuracy_of_first_and_last_rounds_and_the_curve() -> None:
    arms = [1] * 500 + [0] * 1600
    policy = Scripted(arms)
    traces = play([policy], np.zeros((1, 2), np.float32), np.array([0]), np.zeros(2100, np.int64))
    line = summarise(policy, traces["scripted"], np.zeros((0, 2), np.float32), np.zeros(0, np.int64))
    assert (line.first, line.last, line.regret, line.held_out) == (0.0, 1.0, 500.0, None)
    points = curves(traces, 100)
    assert points["round"] == [*range(150, 2201, 50)]
    assert points["scripted"] == [min(regret, 500) for regret in range(50, 2101, 50)]


def test_the_processor_has_a_name_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpu_name()
    monkeypatch.setattr("sona.simulate.CPUINFO", "/no/such/file")
    assert cpu_name()


def test_latency_is_in_microseconds() -> None:
    assert Latency.of(np.arange(1000, 101_000, 1000)) == Latency(50.5, 99.01)


# ---- figures, tables, files ----


def test_runs_join_into_one_curve() -> None:
    first = Curve(0, [50, 100], {"sona": [10, 15]})
    second = Curve(100, [150, 200], {"sona": [1, 2]})
    rounds, series = joined([first, second])
    assert rounds.tolist() == [0, 50, 100, 150, 200]
    assert series["sona"].tolist() == [0, 10, 15, 16, 17]
    at, accuracy = rolling_accuracy(rounds, series["sona"])
    assert at.tolist() == [50, 100, 150, 200]
    np.testing.assert_allclose(accuracy, [0.8, 0.85, 1 - 16 / 150, 1 - 17 / 200])


def test_rolling_accuracy_looks_back_250_rounds() -> None:
    rounds = np.arange(0, 1001, 50)
    regret = np.minimum(rounds, 500).astype(float)  # wrong until round 500, right since
    at, accuracy = rolling_accuracy(rounds, regret)
    assert dict(zip(at.tolist(), accuracy.tolist(), strict=True))[600] == pytest.approx(100 / 250)
    assert accuracy[-1] == 1


def test_a_figure_is_a_png_of_sensible_size(tmp_path: Path) -> None:
    curve = Curve(0, [50, 100, 150], {name: [5, 8, 9] for name in STYLES})
    draw([curve, Curve(150, [200], {name: [1] for name in STYLES})], tmp_path / "figure.png", title="two runs")
    content = (tmp_path / "figure.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    assert 1200 < width < 2400
    assert 400 < height < 1200


def test_without_matplotlib_the_error_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sona\[plot\]'"):
        draw([Curve(0, [50], {"sona": [1]})], tmp_path / "figure.png", title="")


def test_tables_line_up() -> None:
    assert aligned([["", "a", "long head"], ["name", "1", "2"]]) == "      a  long head\n----  -  ---------\nname  1          2"


def test_sizes_and_names_read_well() -> None:
    assert [size(count) for count in (0, 1023, 1536, 5 << 20)] == ["0 B", "1023 B", "1.5 kB", "5.0 MB"]
    assert shown("x" * 100) == "x" * 57 + "..."
    assert one_line("a\nb\x1b[0m\u202e") == r"a\nb\x1b[0m\u202e"


def test_json_is_strict_and_replaced_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"new": float("nan")})
    assert (tmp_path / "a.json").read_text() == as_json({"old": 1}) + "\n"
    assert os.listdir(tmp_path) == ["a.json"]


# ---- progress ----


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_terminal_gets_one_line_that_is_redrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    out, clock = Terminal(), Clock()
    with Progress(100, stream=out, clock=clock) as bar:
        for done in range(1, 101):
            clock.now += 0.03
            bar.update(done, "x" * 80)
    text = out.getvalue()
    assert text.endswith("\n")
    assert text.count("\n") == 1
    drawn = text.strip().split("\r")
    assert 20 < len(drawn) < 40  # ten a second
    assert all(len(line) <= 59 for line in drawn)
    assert drawn[-1].startswith(f"[{'#' * 16}] 100/100")


def test_a_few_steps_are_all_seen_where_that_is_asked_for() -> None:
    out = Terminal()
    with Progress(3, stream=out, clock=Clock(), redraw=0.0) as bar:
        for done, stage in enumerate(("one", "two", "three")):
            bar.update(done, stage)
    assert [line.split()[-1] for line in out.getvalue().strip().split("\r")] == ["one", "two", "three"]


def test_elsewhere_a_line_every_few_seconds() -> None:
    out, clock = io.StringIO(), Clock()
    with Progress(1000, stream=out, clock=clock) as bar:
        for done in range(1, 1001):
            clock.now = done / 50
            bar.update(done)
    assert LINE_S == 5
    assert out.getvalue().splitlines() == ["250/1000 (25%)", "500/1000 (50%)", "750/1000 (75%)", "1000/1000 (100%)"]


def test_a_quick_run_prints_nothing_elsewhere() -> None:
    out = io.StringIO()
    with Progress(10, stream=out, clock=Clock()) as bar:
        bar.update(10)
    assert out.getvalue() == ""


# ---- the run ----


def test_sona_beats_the_frozen_model_and_a_second_run_goes_on(tmp_path: Path) -> None:
    first = run_demo(world="shift", seed=1, rounds=1500, out=tmp_path)["runs"][-1]
    assert list(first["policies"]) == ["frozen", "sona", "LinUCB"]
    assert first["policies"]["sona"]["regret"] < 0.4 * first["policies"]["frozen"]["regret"]
    assert first["policies"]["sona"]["held_out"] > first["policies"]["frozen"]["held_out"] + 0.2
    assert first["resumed"] is None
    report = run_demo(world="shift", seed=1, rounds=600, out=tmp_path)
    second = report["runs"][-1]
    assert (second["start"], second["rounds"], report["rounds_done"]) == (1500, 600, 2100)
    assert second["resumed"]["previous_last"] == first["policies"]["sona"]["last"]
    assert second["policies"]["sona"]["first"] > first["policies"]["sona"]["last"] - 0.03
    assert second["policies"]["LinUCB"]["first"] > first["policies"]["LinUCB"]["last"] - 0.03  # the peer resumes too
    text = demo_text(report, tmp_path)
    assert "resumed: first 500 of this run" in text
    assert "last 1000 of the previous run" in text


def test_progress_shows_all_three_in_80_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out, clock = Terminal(), Clock()

    def progress(total: int) -> Progress:
        return Progress(total, stream=out, clock=clock)

    run_demo(rounds=40, out=tmp_path, progress=progress)
    last = out.getvalue().splitlines()[-1].split("\r")[-1]
    assert "40/40" in last
    assert last.index("frozen 0.") < last.index("sona 0.") < last.index("LinUCB 0.")


def test_the_same_seed_gives_the_same_run(tmp_path: Path) -> None:
    first, second = (run_demo(rounds=400, seed=5, out=tmp_path / name)["runs"][0]["curve"] for name in "ab")
    assert first == second


def test_a_run_that_was_killed_resumes_from_the_store(tmp_path: Path) -> None:
    run_demo(rounds=700, out=tmp_path)
    report = as_json(run_demo(rounds=1, out=tmp_path / "other"))  # a report as it is before the first run ends
    empty = {**json.loads(report), "rounds_done": 0, "runs": [], "figure": None}
    write_json(tmp_path / "report.json", empty)
    again = run_demo(rounds=500, out=tmp_path)
    run = again["runs"][-1]
    assert (run["start"], run["unfinished"], again["rounds_done"]) == (700, 700, 1200)
    assert run["policies"]["sona"]["first"] > 0.85
    assert "cut off" in demo_text(again, tmp_path)


def test_an_interrupt_leaves_a_report_to_resume_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = LinUCB.feedback
    calls = iter(range(10_000))

    def feedback(self: LinUCB, decision: Any, reward: float) -> None:
        if next(calls) == 300:
            raise KeyboardInterrupt
        original(self, decision, reward)

    monkeypatch.setattr(LinUCB, "feedback", feedback)
    with pytest.raises(Interrupted):
        run_demo(rounds=900, out=tmp_path)
    monkeypatch.undo()
    report = run_demo(rounds=200, out=tmp_path)
    assert [run["rounds"] for run in report["runs"]] == [300, 200]
    assert report["runs"][1]["start"] in (300, 301)  # the round that was cut had been decided
    assert report["runs"][1]["unfinished"] == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a report"),
        ("[]", "not a report"),
        ('{"format": 99, "world": "few", "seed": 0, "rounds_done": 0, "runs": []}', "format 99"),
    ],
)
def test_a_directory_with_something_else_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(SonaError, match=f"{message}.*--out"):
        run_demo(rounds=10, out=tmp_path)
    assert os.listdir(tmp_path) == ["report.json"]


def test_store_and_report_must_be_together(tmp_path: Path) -> None:
    run_demo(rounds=10, out=tmp_path)
    (tmp_path / "report.json").rename(tmp_path / "elsewhere")
    with pytest.raises(SonaValueError, match=r"no report\.json.*--out"):
        run_demo(rounds=10, out=tmp_path)
    (tmp_path / "elsewhere").rename(tmp_path / "report.json")
    (tmp_path / "sona.db").unlink()
    with pytest.raises(SonaValueError, match=r"no sona\.db.*--out"):
        run_demo(rounds=10, out=tmp_path)


@pytest.mark.parametrize(("options", "message"), [({"rounds": 0}, "rounds"), ({"seed": -1}, "seed"), ({"world": "flat"}, "world")])
def test_unusable_options_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SonaValueError, match=message):
        run_demo(out=tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


# ---- stories ----


def test_a_world_that_turns_raises_one_alarm_and_is_learned_sooner(tmp_path: Path) -> None:
    report = run_story("drift", seed=2, rounds=2400, out=tmp_path)
    frozen, ours, bare = (report["policies"][name] for name in ("frozen", "sona", "unguarded"))
    assert report["alarms"] == 1
    assert [event["what"] for event in report["did"]] == ["drift alarm"]
    assert 1200 < report["did"][0]["round"] <= 1264
    assert ours["phases"][1] > bare["phases"][1] + 0.1
    assert frozen["phases"][1] < 0.1
    assert ours["held_out"] > frozen["held_out"] + 0.5
    assert report["curve"]["sona"][-1] == ours["wrong"]
    text = story_text(report, tmp_path)
    assert "1201 to 2400: every digit has another answer" in text
    assert "drift alarm" in text


def test_tasks_are_kept_where_their_reservoirs_are_replayed(tmp_path: Path) -> None:
    report = run_story("tasks", seed=0, rounds=1500, out=tmp_path)
    cycles = [event for event in report["did"] if event["what"] == "background cycle"]
    assert [event["round"] for event in cycles] == [300, 500, 600, 900, 1000, 1200, 1500]
    assert report["kept"]["round"] == [300, 600, 900, 1200, 1500]
    assert report["kept"]["sona"][-1] == report["policies"]["sona"]["held_out"] > report["policies"]["unguarded"]["held_out"] + 0.03
    assert "rows replayed" in story_text(report, tmp_path)


def test_lies_cost_a_guarded_learner_less_in_the_end(tmp_path: Path) -> None:
    report = run_story("poison", seed=0, out=tmp_path)
    ours, bare = report["policies"]["sona"], report["policies"]["unguarded"]
    assert ours["wrong"] < bare["wrong"]
    assert ours["phases"][2] > bare["phases"][2] + 0.2  # once the block of lies is over
    assert report["flipped"] == 0.2
    assert "mallory" in story_text(report, tmp_path)


def test_a_story_is_the_same_for_one_seed_and_writes_what_it_returns(tmp_path: Path) -> None:
    one, two = (run_story("poison", seed=4, rounds=400, out=tmp_path / name) for name in "ab")
    assert one["curve"] == two["curve"]
    assert json.loads((tmp_path / "a" / "report.json").read_text()) == one
    assert (tmp_path / "a" / "figure.png").read_bytes().startswith(b"\x89PNG")
    again = run_story("drift", rounds=200, out=tmp_path / "a")  # another story may take its place
    assert json.loads((tmp_path / "a" / "report.json").read_text()) == again


def test_a_story_leaves_other_reports_alone_and_nothing_behind_an_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_demo(rounds=10, out=tmp_path)
    before = (tmp_path / "report.json").read_text()
    with pytest.raises(SonaValueError, match=r"not the report of a story.*--out"):
        run_story("drift", rounds=200, out=tmp_path)
    assert (tmp_path / "report.json").read_text() == before
    calls = iter(range(1000))

    def feedback(*_: object) -> None:
        if next(calls) == 50:
            raise KeyboardInterrupt

    monkeypatch.setattr("sona.simulate.Frozen.feedback", feedback)
    with pytest.raises(Interrupted) as stop:
        run_story("drift", rounds=200, out=tmp_path / "new")
    assert stop.value.rounds == 50
    assert not (tmp_path / "new").exists()


def test_a_story_without_matplotlib_has_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    report = run_story("drift", rounds=100, out=tmp_path)
    assert report["figure"] is None
    assert "no figure" in story_text(report, tmp_path)


@pytest.mark.parametrize(("options", "message"), [({"rounds": 99}, "rounds"), ({"seed": -1}, "seed"), ({"story": "flat"}, "story")])
def test_a_story_refuses_unusable_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SonaValueError, match=message):
        run_story(**({"story": "drift", "out": tmp_path / "new"} | options))
    assert not (tmp_path / "new").exists()
