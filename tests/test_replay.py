"""Promises of `sona replay`: what files it reads, what it refuses and how, that it predicts before it learns, and what it reports."""

import io
import json
import math
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sona import Router, SonaError, SonaValueError
from sona.replay import ReplayOptions, run_replay
from sona.replay import lines as lines_module
from sona.replay.lines import BadLines
from sona.replay.log import LoggedDecisions, LoggedRow, parse_arms, read_arms
from sona.replay.offpolicy import estimates, run_log
from sona.replay.tables import read_csv, read_npz
from sona.replay.text import replay_text


def write(path: Path, lines: Iterable[Mapping[str, Any] | str]) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), encoding="utf-8")
    return path


ARMS = {"a": [1.0, 0.0, 0.0], "b": [0.0, 1.0, 0.0], "c": [0.0, 0.0, 1.0]}


def decision(**changes: Any) -> dict[str, Any]:
    return {"x": [0.1, 0.2, 0.3], "arm": "a", "reward": 1.0, "propensity": 0.5, **changes}


def clusters(rng: np.random.Generator, n: int, arms: int = 4, dim: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around one direction per class, with the class of each."""
    centres = rng.standard_normal((arms, dim))
    y = rng.integers(0, arms, n)
    x = centres[y] + 0.6 * rng.standard_normal((n, dim))
    return x / np.linalg.norm(x, axis=1, keepdims=True), y


def uniform_log(path: Path, seed: int = 0, n: int = 1500, arms: int = 4) -> np.ndarray:
    """A log of arms drawn uniformly, whose arm vectors are wrong; returns the right answers."""
    rng = np.random.default_rng(seed)
    x, y = clusters(rng, n, arms)
    vectors = rng.standard_normal((arms, x.shape[1]))
    shown = rng.integers(0, arms, n)
    header = {"arms": {f"arm{k}": vectors[k].tolist() for k in range(arms)}}
    rows = [
        {"x": x[t].tolist(), "arm": f"arm{shown[t]}", "reward": float(shown[t] == y[t]), "propensity": 1 / arms, "time": t}
        for t in range(n)
    ]
    write(path, [header, *rows])
    return y


# ---- logged decisions: reading ----


def test_a_log_gives_its_rows_in_order(tmp_path: Path) -> None:
    path = write(
        tmp_path / "log.jsonl",
        [
            {"arms": ARMS},
            decision(time=5, candidates=["a", "b"], user="u1"),
            "",
            decision(x=[1, 2, 3], arm="c", reward=0, propensity=None, time="2024-05-01T10:00:00Z", user="u2", page=3),
        ],
    )
    log = LoggedDecisions(path)
    shape = log.scan()
    assert (shape.dim, shape.rows, tuple(shape.names), shape.without_propensity) == (3, 2, ("a", "b", "c"), 1)
    assert dict(shape.ignored) == {"user": 2, "page": 1}
    first, second = log.rows()
    assert (first.line, first.arm, first.reward, first.candidates, first.propensity, first.time) == (2, "a", 1.0, ("a", "b"), 0.5, 5.0)
    assert (second.line, second.arm, second.candidates, second.time) == (4, "c", None, 1714557600.0)
    assert math.isnan(second.propensity)
    assert second.x.dtype == np.float32
    np.testing.assert_array_equal(second.x, [1, 2, 3])


def test_arms_may_share_the_first_line_with_a_decision_or_come_from_a_file(tmp_path: Path) -> None:
    together = LoggedDecisions(write(tmp_path / "1.jsonl", [decision(arms=ARMS), decision(arm="b")]))
    assert together.scan().rows == 2
    (tmp_path / "arms.json").write_text(json.dumps(ARMS, indent=2), encoding="utf-8")
    apart = LoggedDecisions(write(tmp_path / "2.jsonl", [decision()]), arms=read_arms(tmp_path / "arms.json"))
    shape = apart.scan()
    assert shape.vectors is not None
    np.testing.assert_array_equal(shape.vectors["b"], ARMS["b"])


def test_without_vectors_the_names_come_from_arms_and_candidates(tmp_path: Path) -> None:
    shape = LoggedDecisions(write(tmp_path / "log.jsonl", [decision(candidates=["z", "a"]), decision(arm="b")])).scan()
    assert tuple(shape.names) == ("a", "z", "b")
    assert shape.vectors is None


def test_times_that_go_back_are_counted_and_the_order_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", [decision(time=t, arm=arm) for t, arm in [(3, "a"), (1, "b"), (2, "a"), (9, "b")]])
    log = LoggedDecisions(path)
    assert log.scan().earlier_than_before == 2
    assert [row.time for row in log.rows()] == [3, 1, 2, 9]


BAD_LINES: list[tuple[Mapping[str, Any] | str, str]] = [
    ("{", "not JSON"),
    ("[1]", "expected a JSON object, got a list"),
    ("null", "expected a JSON object, got null"),
    ("[" * 100_000, "not JSON"),
    ('{"x": [NaN], "arm": "a", "reward": 1}', "expected finite numbers, got NaN"),
    ('{"x": [1, 2, 3], "arm": "a", "reward": -Infinity}', "expected finite numbers, got -Infinity"),
    ('{"x": [1, 2, 1e999], "arm": "a", "reward": 1}', "finite float32 numbers in x"),
    ('{"x": [1, 2, %s], "arm": "a", "reward": 1}' % ("9" * 400), "finite float32 numbers in x"),
    ('{"x": [1, 2, 3], "arm": "a", "reward": %s}' % ("9" * 400), "a finite reward"),
    ('{"x": [1, 2, 3], "arm": "a", "reward": %s}' % ("9" * 5000), "line 2"),
    (decision(x=[1e300, 0, 0]), "finite float32 numbers in x"),
    (decision(x=[1, 2]), "x with 3 numbers, got 2"),
    (decision(x=[]), "an empty one"),
    (decision(x="abc"), "x as a list of numbers, got a string"),
    (decision(x=[1, "2", 3]), "a string in it"),
    (decision(x=[1, True, 3]), "true or false in it"),
    (decision(x=[1, [2], 3]), "a list in it"),
    ({"arm": "a", "reward": 1}, "field x is missing"),
    ({"x": [1, 2, 3], "reward": 1}, "field arm is missing"),
    ({"x": [1, 2, 3], "arm": "a"}, "field reward is missing"),
    (decision(reward=None), "reward as a number, got null"),
    (decision(reward=True), "reward as a number, got true or false"),
    (decision(reward="1"), "reward as a number, got a string"),
    (decision(reward=1.5), r"reward in \[0, 1\], got 1.5"),
    (decision(arm=""), "arm as a name of 1..256 characters"),
    (decision(arm="x" * 300), "got 300 characters"),
    (decision(arm=7), "arm as a name of 1..256 characters, got a number"),
    (decision(propensity=0), r"propensity in \(0, 1\], got 0"),
    (decision(propensity=1.01), r"propensity in \(0, 1\]"),
    (decision(propensity="half"), "propensity as a number"),
    (decision(candidates=[]), "candidates as a list of names, got none"),
    (decision(candidates="a"), "candidates as a list of names, got a string"),
    (decision(candidates=["b", "c"]), "arm 'a' is not among the candidates"),
    (decision(candidates=["a", "a"]), "a candidate appears twice"),
    (decision(time="yesterday"), "time as a number or ISO 8601"),
    (decision(time=[1]), "time as a number, got a list"),
    (decision(arms=ARMS), "only allowed on the first line"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES, ids=[message for _, message in BAD_LINES])
def test_a_bad_line_is_named_or_skipped(tmp_path: Path, line: Mapping[str, Any] | str, message: str) -> None:
    path = write(tmp_path / "log.jsonl", [decision(), line, decision(arm="b")])
    with pytest.raises(SonaValueError, match=message) as caught:
        LoggedDecisions(path).scan()
    assert f"{path}, line 2: " in str(caught.value)
    assert "\n" not in str(caught.value)
    log = LoggedDecisions(path, skip_bad=True)
    assert log.scan().rows == 2
    assert log.bad.count == 1
    assert log.bad.messages[0].startswith("line 2: ")
    assert [row.line for row in log.rows()] == [1, 3]


def test_lines_that_are_not_text_or_too_long_are_bad_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "MAX_LINE", 200)
    path = tmp_path / "log.jsonl"
    good = json.dumps(decision()).encode()
    path.write_bytes(b"\xef\xbb\xbf" + good + b"\r\n\xff\xfe\n" + b"x" * 1000 + b"\n" + good.replace(b'"a"', b'"b"'))
    log = LoggedDecisions(path, skip_bad=True)
    assert log.scan().rows == 2
    assert log.bad.messages == ["line 2: expected UTF-8, got byte 0xff at column 1", "line 3: expected at most 200 bytes"]
    with pytest.raises(SonaValueError, match="line 2: expected UTF-8"):
        LoggedDecisions(path).scan()


def test_only_the_first_messages_are_kept(tmp_path: Path) -> None:
    log = LoggedDecisions(write(tmp_path / "log.jsonl", [decision(), decision(arm="b"), *["{"] * 50]), skip_bad=True)
    log.scan()
    assert log.bad.count == 50
    assert len(log.bad.messages) == lines_module.KEPT_MESSAGES


def test_rewards_outside_the_range_may_be_clipped(tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", [decision(reward=7, arm="b"), decision(reward=-7)])
    log = LoggedDecisions(path, reward_range=(-1.0, 1.0), clip=True)
    log.scan()
    assert [row.reward for row in log.rows()] == [1.0, -1.0]


def test_bad_arm_vectors_are_never_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", [{"arms": {"a": [1, 0, 0], "b": [1, 0]}}, decision(), decision(arm="b")])
    with pytest.raises(SonaError, match=r"line 1: arm 'b': expected the vector with 3 numbers, got 2"):
        LoggedDecisions(path, skip_bad=True).scan()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1], "an object of 2"),
        ({"a": [1, 2]}, "an object of 2..100000 vectors, got 1"),
        ({"a": [1, 2], "b": [0, 0]}, "arm 'b': expected a vector that is not zero"),
        ({"a": [1, 2], "b": [1, 2, 3]}, "arm 'b': expected the vector with 2 numbers, got 3"),
        ({"a": [1, 2], "": [1, 2]}, "arm as a name"),
        ({"a": "12", "b": [1, 2]}, "arm 'a': expected the vector as a list"),
    ],
)
def test_unusable_arms_are_refused(value: Any, message: str) -> None:
    with pytest.raises(SonaValueError, match=message):
        parse_arms(value)


def test_an_arms_file_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "arms.json").write_text("{'a': 1}", encoding="utf-8")
    with pytest.raises(SonaValueError, match=r"arms\.json: not JSON"):
        read_arms(tmp_path / "arms.json")


def test_an_arm_without_a_vector_is_a_bad_line(tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", [{"arms": ARMS}, decision(candidates=["a", "nobody"])])
    with pytest.raises(SonaValueError, match="line 2: arm 'nobody' has no vector in arms"):
        LoggedDecisions(path).scan()


@pytest.mark.parametrize(("lines", "message"), [([], "no usable decision"), ([decision()], "at least 2 arms, got 1")])
def test_a_log_without_a_choice_is_refused(tmp_path: Path, lines: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(SonaValueError, match=message):
        LoggedDecisions(write(tmp_path / "log.jsonl", lines)).scan()


def test_arms_beyond_the_bound_are_bad_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sona.replay.log.MAX_ARMS", 3)
    path = write(tmp_path / "log.jsonl", [decision(arm=name) for name in "abcd"])
    with pytest.raises(SonaValueError, match="line 4: expected at most 3 arms, got one more: 'd'"):
        LoggedDecisions(path).scan()


def test_ignored_fields_are_counted_within_bounds(tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", [decision(arm="ab"[t % 2], **{f"field{t}": 1}) for t in range(100)])
    ignored = LoggedDecisions(path).scan().ignored
    assert len(ignored) <= 33
    assert ignored["(others)"] == 100 - 32


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300) | st.text(max_size=200).map(str.encode))
def test_any_bytes_give_rows_or_a_sona_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(json.dumps(decision()).encode() + b"\n" + content)
    for skip in (False, True):
        with suppress(SonaError):
            LoggedDecisions(path, skip_bad=skip).scan()


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3), max_leaves=4
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from(["x", "arm", "reward", "propensity", "candidates", "time", "arms", "extra"]), JSON))
def test_any_fields_give_rows_or_a_sona_error(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = write(tmp_path / "log.jsonl", [decision(), {**decision(arm="b"), **changes}])
    with suppress(SonaValueError):
        LoggedDecisions(path).scan()


# ---- logged decisions: learning and estimates ----


class Remembers:
    """Knows the right arm of every row that it has learned, and nothing else; the log repeats no row."""

    def __init__(self) -> None:
        self.seen: dict[bytes, str] = {}

    def choose(self, row: LoggedRow) -> str:
        return self.seen.get(row.x.tobytes(), "arm0")

    def learn(self, row: LoggedRow) -> None:
        if row.reward == 1:
            self.seen[row.x.tobytes()] = row.arm


def test_each_row_is_predicted_before_it_is_learned(tmp_path: Path) -> None:
    y = uniform_log(tmp_path / "log.jsonl")
    log = LoggedDecisions(tmp_path / "log.jsonl")
    log.scan()
    run = run_log(log.rows(), {"remembers": Remembers()})
    found = estimates(run, "remembers", slice(None), (0.0, 1.0))
    truth = float(np.mean(y == 0))  # it can only ever say arm0
    for method in ("replay", "ips", "snips"):
        assert found[method]["low"] <= truth <= found[method]["high"]


def test_the_estimates_find_the_values_that_full_information_shows(tmp_path: Path) -> None:
    """The log's answers are known here, so the learned policy's true value is: replay it by hand, with a Router of its own."""
    y = uniform_log(tmp_path / "log.jsonl", n=3000)
    report = run_replay(tmp_path / "log.jsonl", ReplayOptions(seed=3))
    log = LoggedDecisions(tmp_path / "log.jsonl")
    vectors = log.scan().vectors
    assert vectors is not None
    right = {"frozen": [], "sona": []}
    with Router(vectors, seed=3) as router:
        for row, label in zip(log.rows(), y, strict=True):
            right["frozen"].append(router.predict(row.x[None], model="frozen")[0] == label)
            right["sona"].append(router.predict(row.x[None])[0] == label)
            router.warm_start([(row.x, row.arm, row.reward)])
    for part, rows in {"all rows": slice(None), "second half": slice(1500, None)}.items():
        for policy, answers in right.items():
            truth = float(np.mean(answers[rows]))
            for method in ("replay", "ips", "snips"):
                found = report["estimates"][part][policy][method]
                assert found["low"] - 0.02 <= truth <= found["high"] + 0.02, (part, policy, method, truth, found)
    learned = report["estimates"]["second half"]["sona"]["snips"]
    assert learned["low"] > report["estimates"]["second half"]["frozen"]["snips"]["high"]
    assert learned["value"] > 0.7


def test_candidates_bound_the_choice(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(200):
        open_arms = sorted(rng.choice(["a", "b", "c"], size=2, replace=False).tolist())
        arm = str(rng.choice(open_arms))
        rows.append(decision(x=rng.standard_normal(3).tolist(), arm=arm, reward=float(rng.integers(2)), candidates=open_arms))
    report = run_replay(write(tmp_path / "log.jsonl", [{"arms": ARMS}, *rows]), ReplayOptions())
    assert 0.35 < report["agreement"]["all rows"]["frozen"] < 0.65  # one of two, never a third
    assert report["estimates"]["all rows"]["frozen"]["replay"]["n_effective"] > 60


def test_missing_propensities_are_refused_with_the_reason_not_replaced_by_a_mean(tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", [decision(arm="ab"[t % 2], propensity=None if t < 4 else 0.5) for t in range(200)])
    report = run_replay(path, ReplayOptions())
    assert report["rows_without_propensity"] == 4
    for policy in ("frozen", "sona"):
        for found in report["estimates"]["all rows"][policy].values():
            assert found == {"refused": "4 of 200 rows have no propensity: an estimate without them is biased"}
    text = replay_text(report, None)
    assert "refused" in text
    assert "4 of 200 rows have no propensity" in text


def test_a_log_that_was_drawn_uniformly_may_say_so_instead(tmp_path: Path) -> None:
    uniform_log(tmp_path / "log.jsonl", n=1000)
    stripped = [
        {k: v for k, v in json.loads(line).items() if k != "propensity"} for line in (tmp_path / "log.jsonl").read_text().splitlines()
    ]
    bare = write(tmp_path / "bare.jsonl", stripped)
    with_flag = run_replay(bare, ReplayOptions(uniform=True))
    assert with_flag["estimates"] == run_replay(tmp_path / "log.jsonl", ReplayOptions())["estimates"]
    assert "refused" in run_replay(bare, ReplayOptions())["estimates"]["all rows"]["sona"]["snips"]


def test_the_same_seed_gives_the_same_report(tmp_path: Path) -> None:
    uniform_log(tmp_path / "log.jsonl", n=400)
    first, second = (run_replay(tmp_path / "log.jsonl", ReplayOptions(seed=1)) for _ in range(2))
    assert first == second


def test_names_alone_are_enough(tmp_path: Path) -> None:
    uniform_log(tmp_path / "log.jsonl", n=1500)
    rows = (tmp_path / "log.jsonl").read_text().splitlines()[1:]
    report = run_replay(write(tmp_path / "names.jsonl", rows), ReplayOptions())
    assert report["prior"] == "random orthonormal vectors"
    assert report["estimates"]["second half"]["sona"]["snips"]["value"] > report["estimates"]["second half"]["frozen"]["snips"]["value"]


def test_rewards_of_another_range_are_reported_in_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    rows = [
        decision(x=rng.standard_normal(3).tolist(), arm="ab"[rng.integers(2)], reward=float(rng.choice([-3.0, 5.0]))) for _ in range(400)
    ]
    report = run_replay(write(tmp_path / "log.jsonl", rows), ReplayOptions(reward_range=(-3.0, 5.0)))
    found = report["estimates"]["all rows"]["frozen"]["snips"]
    assert -3 < found["low"] < 1 < found["high"] < 5
    assert "in [-3, 5]" in replay_text(report, None)


# ---- labelled rows ----


def test_npz_reads_x_and_y_in_order(tmp_path: Path) -> None:
    x = np.arange(12, dtype=np.float64).reshape(4, 3)
    for y, names in [
        (np.array([7, 3, 7, 3]), ("7", "3")),
        (np.array(["cat", "dog", "cat", "dog"]), ("cat", "dog")),
        (np.array([b"cat", b"dog", b"cat", b"dog"]), ("cat", "dog")),
        (np.array([1.0, 2.0, 1.0, 2.0]), ("1", "2")),
        (np.array([True, False, True, False]), ("True", "False")),
    ]:
        np.savez_compressed(tmp_path / "data.npz", X=x, y=y, note=np.ones(2))
        data = read_npz(tmp_path / "data.npz", BadLines("data.npz", skip=False))
        assert data.names == names
        assert data.y.tolist() == [0, 1, 0, 1]
        assert data.x.dtype == np.float32
        assert data.ignored == {"note": 1}
        np.testing.assert_array_equal(data.x, x)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": np.ones((4, 2))}, "arrays X and y, got X"),
        ({"X": np.ones(4), "y": np.arange(4)}, r"X of shape \(n, d\)"),
        ({"X": np.ones((4, 2)), "y": np.arange(3)}, r"y of shape \(n,\)"),
        ({"X": np.ones((0, 2)), "y": np.arange(0)}, "shape"),
        ({"X": np.ones((4, 2), complex), "y": np.arange(4)}, "X as numbers, got complex128"),
        ({"X": np.array([["a", "b"]] * 4), "y": np.arange(4)}, "X as numbers"),
        ({"X": np.ones((4, 2)), "y": np.arange(4) / 3}, "class labels"),
        ({"X": np.ones((4, 2)), "y": np.arange(4) * 1j}, "class labels"),
        ({"X": np.ones((2, 1 << 17), np.int8), "y": np.arange(2)}, "at most 65536 features, got 131072"),
        ({"X": np.ones((4, 2)), "y": np.zeros(4)}, "2..100000 classes in y, got 1"),
        ({"X": np.ones((4, 2)), "y": np.array([{}, {}, {}, {}])}, "never unpickled"),
        ({"X": np.ones((2, 2)), "y": np.array([0, 1e300])}, "labels below 2"),
    ],
)
def test_unusable_npz_arrays_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(SonaValueError, match=message):
        read_npz(tmp_path / "data.npz", BadLines("data.npz", skip=False))


def test_npz_rows_that_are_not_finite_are_named_or_skipped(tmp_path: Path) -> None:
    x = np.ones((5, 2))
    x[3, 1], x[4, 0] = np.nan, 1e300
    np.savez(tmp_path / "data.npz", X=x, y=np.array([0, 1, 0, 1, 0]))
    with pytest.raises(SonaValueError, match="row 3: expected finite"):
        read_npz(tmp_path / "data.npz", BadLines("data.npz", skip=False))
    bad = BadLines("data.npz", skip=True)
    assert read_npz(tmp_path / "data.npz", bad).y.tolist() == [0, 1, 0]
    assert bad.count == 2
    np.savez(tmp_path / "data.npz", X=np.full((3, 2), np.nan), y=np.arange(3))
    with pytest.raises(SonaValueError, match="no usable rows"):
        read_npz(tmp_path / "data.npz", BadLines("data.npz", skip=True))


def npy(shape: str, payload: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header + payload


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (npy("(1000000000000, 64)"), "at most 4294967296 bytes"),
        (npy("(1000, 2)", bytes(80)), "promises 16000 bytes and holds 80"),
        (npy("(2, 2)", bytes(80)), "promises 32 bytes and holds 80"),
        (npy("(2, 2)", bytes(32), b"\x09\x00"), "X"),
        (b"nonsense", "X is not a sound array"),
    ],
)
def test_npz_headers_that_lie_cost_nothing(tmp_path: Path, member: bytes, message: str) -> None:
    labels = io.BytesIO()
    np.save(labels, np.arange(2))
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("X.npy", member)
        archive.writestr("y.npy", labels.getvalue())
    with pytest.raises(SonaValueError, match=message):
        read_npz(tmp_path / "data.npz", BadLines("data.npz", skip=False))


def test_a_broken_npz_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "whole.npz", X=np.random.default_rng(0).random((50, 4)), y=np.arange(50) % 2)
    content = (tmp_path / "whole.npz").read_bytes()
    rng = np.random.default_rng(0)
    for trial in range(60):
        broken = bytearray(content[: rng.integers(1, len(content))] if trial % 2 else content)
        broken[int(rng.integers(len(broken)))] ^= 0xFF
        (tmp_path / "data.npz").write_bytes(broken)
        with suppress(SonaError):
            read_npz(tmp_path / "data.npz", BadLines("data.npz", skip=False))
    start, end = content.find(b"PK\x01\x02"), content.rfind(b"PK\x05\x06")
    cases = {
        "a name that is no UTF-8": (start + 9, bytes([content[start + 9] | 8]), start + 46, b"\xff"),
        "a member before the start of the file": (end + 16, (start + 100).to_bytes(4, "little"), 0, b""),
    }
    for at, new, other, more in cases.values():  # UnicodeDecodeError and OSError of zipfile
        broken = bytearray(content)
        broken[at : at + len(new)], broken[other : other + len(more)] = new, more
        (tmp_path / "data.npz").write_bytes(broken)
        with pytest.raises(SonaValueError, match=r"not a sound \.npz"):
            read_npz(tmp_path / "data.npz", BadLines("data.npz", skip=False))
    (tmp_path / "data.npz").write_bytes(b"not a zip")
    with pytest.raises(SonaValueError, match=r"not a sound \.npz"):
        read_npz(tmp_path / "data.npz", BadLines("data.npz", skip=False))


def test_csv_reads_numbers_and_the_label_column(tmp_path: Path) -> None:
    path = write(tmp_path / "data.csv", ['f1,"the label",f2', "1,cat,2.5", "", '3,"dog, big",-4e-3'])
    data = read_csv(path, BadLines(path, skip=False), label="the label")
    assert data.names == ("cat", "dog, big")
    np.testing.assert_array_equal(data.x, np.float32([[1, 2.5], [3, -4e-3]]))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a,b", "1,2"], "line 1: expected a header with the label column 'y'"),
        ([], "label column"),
        (["a,y,a", "1,0,2"], "line 1: column 'a' appears twice"),
        (["y", "0"], "1..65535 columns beside the label, got 0"),
        (["a,y", "1,0", "2"], "line 3: expected 2 fields, got 1"),
        (["a,y", "1,0", "2,1,5"], "line 3: expected 2 fields, got 3"),
        (["a,y", "1,0", "two,1"], "line 3: expected a finite float32 number in column 'a', got 'two'"),
        (["a,y", "nan,0"], "line 2: expected a finite float32 number in column 'a', got 'nan'"),
        (["a,b,y", "1,inf,0"], "column 'b', got 'inf'"),
        (["a,y", "1e39,0"], "column 'a', got '1e39'"),
        (["a,y", ",0"], "column 'a', got ''"),
        (["a,y", "1, "], "line 2: the label column 'y' is empty"),
        (["a,y", '"1,0'], "line 2: not comma-separated"),
        (["a,y"], "no usable rows"),
        (["a,y", "1,0", "2,0"], "2..100000 classes in y, got 1"),
    ],
)
def test_unusable_csv_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    path = write(tmp_path / "data.csv", lines)
    with pytest.raises(SonaValueError, match=message):
        read_csv(path, BadLines(path, skip=False))


def test_csv_skips_bad_lines_when_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "data.csv", ["a,y", "1,0", "x,1", "2,1", "3"])
    bad = BadLines(path, skip=True)
    assert read_csv(path, bad).y.tolist() == [0, 1]
    assert bad.count == 2
    assert bad.messages[0].startswith("line 3: ")


def test_labelled_rows_are_learned_beyond_the_frozen_model(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = clusters(rng, 1500)
    half = rng.permutation(8)[:4]
    shown = np.concatenate([np.flatnonzero(y == k)[:5] for k in range(4)])
    drifted = x.copy()
    drifted[:, half] = -x[:, half]
    drifted[shown] = x[shown]  # the labelled examples are from before the drift
    np.savez(tmp_path / "data.npz", X=drifted, y=y)
    report = run_replay(tmp_path / "data.npz", ReplayOptions(out=tmp_path / "out"))
    frozen, learned = report["policies"]["frozen"], report["policies"]["sona"]
    assert list(report["policies"]) == ["frozen", "sona"]
    assert learned["regret"] < 0.7 * frozen["regret"]
    assert learned["held_out"] > frozen["held_out"]
    assert report["rounds"] + report["held_out_rows"] + 20 == 1500
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    assert (tmp_path / "out" / "figure.png").read_bytes().startswith(b"\x89PNG")
    text = replay_text(report, tmp_path / "out")
    assert "held-out" in text
    assert str(tmp_path / "out" / "figure.png") in text


def test_csv_and_npz_of_the_same_rows_give_the_same_figures(tmp_path: Path) -> None:
    x, y = clusters(np.random.default_rng(1), 300)
    x = x.astype(np.float32)
    np.savez(tmp_path / "data.npz", X=x, y=y)
    header = ",".join([*(f"f{k}" for k in range(8)), "kind"])
    write(tmp_path / "data.csv", [header, *(",".join([*map(repr, map(float, row)), str(label)]) for row, label in zip(x, y, strict=True))])
    by_npz = run_replay(tmp_path / "data.npz", ReplayOptions(seed=2))
    by_csv = run_replay(tmp_path / "data.csv", ReplayOptions(seed=2, label="kind"))
    assert by_npz["curve"] == by_csv["curve"]


def test_rows_sorted_by_class_are_pointed_out_and_can_be_shuffled(tmp_path: Path) -> None:
    x, y = clusters(np.random.default_rng(1), 600)
    order = np.argsort(y, kind="stable")
    np.savez(tmp_path / "data.npz", X=x[order], y=y[order])
    by_class = run_replay(tmp_path / "data.npz", ReplayOptions(prior=False))
    mixed = run_replay(tmp_path / "data.npz", ReplayOptions(prior=False, shuffle=True))
    assert "--shuffle" in replay_text(by_class, None)
    assert "--shuffle" not in replay_text(mixed, None)
    assert by_class["rounds"] == mixed["rounds"]
    assert mixed["policies"]["frozen"]["held_out"] == by_class["policies"]["frozen"]["held_out"]  # the same rows are held out


def test_no_prior_and_standardise_and_no_held_out(tmp_path: Path) -> None:
    x, y = clusters(np.random.default_rng(1), 600)
    scale = 10.0 ** np.arange(8)
    np.savez(tmp_path / "data.npz", X=x * scale + 100, y=y)
    raw = run_replay(tmp_path / "data.npz", ReplayOptions(prior=False, held_out=0.0))
    scaled = run_replay(tmp_path / "data.npz", ReplayOptions(prior=False, held_out=0.0, standardise=True))
    assert raw["rounds"] == scaled["rounds"] == 600
    assert scaled["policies"]["frozen"]["held_out"] is None
    assert scaled["policies"]["sona"]["regret"] < raw["policies"]["sona"]["regret"]
    assert "random orthonormal" in replay_text(scaled, None)


def test_more_arms_than_dimensions_have_random_vectors(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", X=rng.standard_normal((100, 3)), y=np.arange(100) % 7)
    assert run_replay(tmp_path / "data.npz", ReplayOptions(prior=False))["arms"] == 7


def test_a_store_keeps_what_a_log_taught(tmp_path: Path) -> None:
    uniform_log(tmp_path / "log.jsonl", n=400)  # so few that the first run is still learning
    options = ReplayOptions(store=tmp_path / "sona.db")
    first, second = (run_replay(tmp_path / "log.jsonl", options)["estimates"]["all rows"]["sona"]["snips"]["value"] for _ in range(2))
    assert second > first + 0.05


def test_a_store_keeps_what_was_learned_and_the_report_warns_of_it(tmp_path: Path) -> None:
    x, y = clusters(np.random.default_rng(1), 600)
    np.savez(tmp_path / "data.npz", X=x, y=y)
    options = ReplayOptions(prior=False, store=tmp_path / "sona.db")
    first, second = (run_replay(tmp_path / "data.npz", options) for _ in range(2))
    assert second["policies"]["sona"]["first"] > first["policies"]["sona"]["first"] + 0.05
    assert "too good" not in replay_text(first, None)
    assert "too good" in replay_text(second, None)


def test_without_matplotlib_the_report_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = clusters(np.random.default_rng(1), 200)
    np.savez(tmp_path / "data.npz", X=x, y=y)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    report = run_replay(tmp_path / "data.npz", ReplayOptions(out=tmp_path / "out"))
    assert report["figure"] is None
    assert "pip install 'sona[plot]'" in replay_text(report, tmp_path / "out")


def test_remarks_stand_in_one_line_each_whatever_the_file_holds(tmp_path: Path) -> None:
    rows = [decision(arm="ab"[t % 2], time=-t, **{"evil\x1b[31m\n": 1}) for t in range(4)]
    path = write(tmp_path / "log.jsonl", [*rows, '{"x": "\x1b]0;title\x07'])
    text = replay_text(run_replay(path, ReplayOptions(skip_bad=True)), None)
    assert "\x1b" not in text
    assert r"evil\x1b[31m\n (4)" in text
    assert "skipped 1 bad lines" in text
    assert "3 rows have an earlier time" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labelled": 0}, "labelled >= 1"),
        ({"held_out": 1.0}, "held-out share"),
        ({"seed": -1}, "seed >= 0"),
        ({"reward_range": (1.0, 1.0)}, "reward range"),
        ({"reward_range": (0.0, math.nan)}, "reward range"),
    ],
)
def test_unusable_options_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SonaValueError, match=message):
        ReplayOptions(**changes)


def test_unusable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SonaValueError, match=r"ends in \.npz, \.csv or \.jsonl"):
        run_replay(tmp_path / "data.txt", ReplayOptions())
    for ending in ("csv", "jsonl", "npz"):
        with pytest.raises((SonaValueError, FileNotFoundError), match=r"no such file|No such file"):
            run_replay(tmp_path / f"nothing.{ending}", ReplayOptions())
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(SonaValueError, match="regular file"):
        run_replay(tmp_path / "folder.jsonl", ReplayOptions())
    np.savez(tmp_path / "few.npz", X=np.eye(4), y=np.array([0, 0, 1, 1]))
    with pytest.raises(SonaValueError, match="rows beyond the 5 labelled ones"):
        run_replay(tmp_path / "few.npz", ReplayOptions())
