"""Records of a store as files: every row, as it is, read by pyarrow and duckdb; pairs as a slow oracle finds them."""

import json
from pathlib import Path

import numpy as np
import pytest

import sona
from sona.cli import main
from sona.errors import MissingExtraError, SonaCorruptError, SonaStoreError, SonaValueError
from sona.ext import records
from sona.ext.preferences import preferences, read_texts, write_preferences
from sona.ext.records import decision_rows, write_decisions, write_patterns, write_rows, write_trajectories
from sona.store import DecisionRow, FeedbackRow, SqliteStore, Store

D = 6


def lines(path: Path) -> list[dict]:  # type: ignore[type-arg]
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def fill(store: Store, rng: np.random.Generator, count: int, *, clusters: int = 4, noise: float = 0.05) -> None:
    """Decisions over three arms whose requests come back, most with a reward, one of them revised."""
    vectors = rng.normal(size=(3, D)).astype("<f4")
    arms = store.put_arms([json.dumps(name) for name in ("a", "b", "ü\n")], vectors.tobytes(), bytes(12))
    centres = rng.normal(size=(clusters, D))
    decisions, rewards = [], []
    for number in range(count):
        x = (centres[rng.integers(clusters)] + noise * rng.normal(size=D)).astype("<f4")
        candidates = np.array([0, 2], "<i4").tobytes() if number % 5 == 0 else None
        arm = 0 if number % 5 == 0 else int(rng.integers(3))
        decisions.append(
            DecisionRow(number + 1, 1000.0 + number, x.tobytes(), arm, arms, candidates, 0.5, b"", "web" if number % 2 else None)
        )
        if rng.random() < 0.8:
            rewards.append(FeedbackRow(number + 1, float(rng.integers(3)) / 2, 2000.0 + number))
    store.append(decisions, [*rewards, FeedbackRow(rewards[0].id, 0.75, 9000.0)])


@pytest.fixture
def store(tmp_path: Path, rng: np.random.Generator):  # type: ignore[no-untyped-def]
    with SqliteStore(tmp_path / "sona.db") as store:
        fill(store, rng, 120)
        yield store


def test_decisions_are_read_by_pyarrow_and_duckdb_as_they_are(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(records, "GROUP_ROWS", 50)
    expected = [{**row, "x": row["x"].tolist()} for row in decision_rows(store)]
    assert len(expected) == 120
    assert {row["arm"] for row in expected} == {"a", "b", "ü\n"}
    assert any(row["reward"] is None for row in expected)
    assert expected[0]["candidates"] == ["a", "ü\n"]
    assert write_decisions(store, tmp_path / "d.jsonl") == write_decisions(store, tmp_path / "d.parquet") == 120
    assert lines(tmp_path / "d.jsonl") == expected
    assert parquet.read_table(tmp_path / "d.parquet").to_pylist() == expected
    assert parquet.ParquetFile(tmp_path / "d.parquet").num_row_groups == 3
    duckdb = pytest.importorskip("duckdb")
    got = duckdb.sql(f"select count(*), count(reward), sum(x[1]), any_value(len(x)) from '{tmp_path / 'd.parquet'}'").fetchall()[0]
    rewarded = [row for row in expected if row["reward"] is not None]
    assert got[:2] == (120, len(rewarded))
    assert got[2] == pytest.approx(sum(row["x"][0] for row in expected), abs=1e-4)
    assert got[3] == D


def test_trajectories_come_with_their_steps(tmp_path: Path, rng: np.random.Generator):
    parquet = pytest.importorskip("pyarrow.parquet")
    x, v = rng.normal(size=(2, D)).astype(np.float32)
    with sona.SonaEngine(sona.SonaConfig(hidden_dim=D), store=tmp_path / "sona.db") as engine:
        ids = [engine.begin_trajectory(x) for _ in range(3)]
        engine.add_step(ids[0], activations=v, reward=0.5, expected=0.25)
        engine.add_step(ids[0], activations=v, attention_weights=[1.0, 2.0, 3.0], x=-x)
        engine.end_trajectory(ids[0], quality=1.0)
        engine.end_trajectory(ids[1])
    with SqliteStore(tmp_path / "sona.db") as store:
        assert write_trajectories(store, tmp_path / "t.jsonl") == write_trajectories(store, tmp_path / "t.parquet") == 2
    got = lines(tmp_path / "t.jsonl")
    assert parquet.read_table(tmp_path / "t.parquet").to_pylist() == got
    assert [row["id"] for row in got] == ids[:2]
    assert got[0]["quality"] == 1.0
    assert got[0]["x"] == x.tolist()
    first, second = got[0]["steps"]
    assert (first["reward"], first["expected"], first["x"], first["attention_weights"]) == (0.5, 0.25, None, None)
    assert (second["reward"], second["x"], second["attention_weights"]) == (1.0, (-x).tolist(), [1.0, 2.0, 3.0])
    assert first["activations"] == v.tolist()
    assert got[1]["quality"] is None
    assert got[1]["steps"] == []


def test_patterns_come_with_their_verdicts(tmp_path: Path, rng: np.random.Generator):
    parquet = pytest.importorskip("pyarrow.parquet")
    centres = np.linalg.qr(rng.normal(size=(D, D)))[0]
    with sona.Router(["a", "b"], dim=D, store=tmp_path / "sona.db", explore="softmax", tau=2.0) as router:
        for number in range(200):
            decision = router.route(centres[number % 2] + 0.05 * rng.normal(size=D))
            router.feedback(decision.id, float(decision.arm == "ab"[number % 2]))
        router.background_learn()
        patterns = router.engine.patterns.current()
        verdicts = router.engine.patterns.verdicts
    assert patterns
    assert verdicts
    with SqliteStore(tmp_path / "sona.db") as store:
        count = write_patterns(store, tmp_path / "p.jsonl")
        assert count == write_patterns(store, tmp_path / "p.parquet") == len(patterns)
        with pytest.raises(SonaStoreError, match="there is no state 'x'"):
            write_patterns(store, tmp_path / "p.jsonl", name="x")
    got = lines(tmp_path / "p.jsonl")
    assert parquet.read_table(tmp_path / "p.parquet").to_pylist() == got
    assert [row["id"] for row in got] == [pattern.id for pattern in patterns]
    assert got[0]["centroid"] == patterns[0].centroid.tolist()
    assert {(row["id"], v["arm"], v["improvement"]) for row in got for v in row["verdicts"]} == {
        (v.pattern, v.arm, v.improvement) for v in verdicts
    }
    assert all(v["statistic"] is None or np.isfinite(v["statistic"]) for row in got for v in row["verdicts"])


def test_a_file_appears_as_a_whole_or_not_at_all(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(SonaValueError, match=r"expected a file \*.parquet or \*.jsonl"):
        write_decisions(store, tmp_path / "d.csv")
    with pytest.raises(SonaStoreError, match="No such file"):
        write_decisions(store, tmp_path / "no" / "d.jsonl")
    (tmp_path / "d.jsonl").write_text("before")
    monkeypatch.setattr(store, "arms", lambda version: None)
    with pytest.raises(SonaCorruptError, match="arm set 1 of decision 1 is missing"):
        write_decisions(store, tmp_path / "d.jsonl")
    assert (tmp_path / "d.jsonl").read_text() == "before"
    assert not list(tmp_path.glob(".tmp-*"))


def test_without_pyarrow_one_line_says_what_to_install(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"^Parquet files need pyarrow: pip install 'sona\[parquet\]'; \*.jsonl needs nothing$"):
        write_decisions(store, tmp_path / "d.parquet")


def test_groups_are_bounded_in_rows_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []
    monkeypatch.setattr(records._Lines, "write", lambda self, rows: seen.append(len(rows)))
    rows = [{"id": number, "x": np.zeros(1000, np.float32)} for number in range(30)]
    monkeypatch.setattr(records, "GROUP_BYTES", 10 * 4200)
    assert write_rows(tmp_path / "a.jsonl", {"id": "l", "x": "v"}, iter(rows)) == 30
    assert seen == [10, 10, 10]
    seen.clear()
    monkeypatch.setattr(records, "GROUP_ROWS", 7)
    write_rows(tmp_path / "a.jsonl", {"id": "l", "x": "v"}, iter(rows))
    assert seen == [7, 7, 7, 7, 2]


# ---- preferences ----


def slow_pairs(rows: list[dict], similarity: float, margin: float, window: int) -> list[tuple[int, int]]:  # type: ignore[type-arg]
    """(chosen, rejected) by comparing each with each before it."""
    rewarded = [row for row in rows if row["reward"] is not None]
    result = []
    for number, one in enumerate(rewarded):
        best, found = -2.0, None
        for two in rewarded[max(0, number - window) : number]:
            a, b = one["x"].astype(float), two["x"].astype(float)
            cosine = round(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)), 6)
            if one["arm"] != two["arm"] and abs(one["reward"] - two["reward"]) > margin and cosine >= similarity and cosine >= best:
                best, found = cosine, two
        if found is not None:
            pair = (one, found) if one["reward"] > found["reward"] else (found, one)
            result.append((pair[0]["id"], pair[1]["id"]))
    return result


@pytest.mark.parametrize(("similarity", "margin", "window"), [(0.98, 0.0, 4096), (0.9, 0.5, 4096), (0.995, 0.0, 10), (1.0, 0.0, 4096)])
def test_pairs_are_those_of_a_slow_search(
    similarity: float, margin: float, window: int, tmp_path: Path, rng: np.random.Generator, monkeypatch
):
    monkeypatch.setattr("sona.ext.preferences._BLOCK", 64)
    with SqliteStore(tmp_path / "s.db") as store:
        fill(store, rng, 300, clusters=8, noise=0.0 if similarity == 1 else 0.1)
        got = [(p["chosen_id"], p["rejected_id"]) for p in preferences(store, similarity, margin, window=window)]
        expected = slow_pairs(list(decision_rows(store)), similarity, margin, window)
    assert len(got) > 10
    same = sum(a == b for a, b in zip(got, expected, strict=True))  # float32 may order two cosines that differ in the sixth digit
    assert same >= len(got) - 2


def test_pairs_have_the_columns_of_dpo_where_texts_are_known(store: Store, tmp_path: Path):
    count = write_preferences(store, tmp_path / "ids.jsonl", similarity=0.9)
    without = lines(tmp_path / "ids.jsonl")
    assert len(without) == count > 10
    assert all(pair["chosen_reward"] > pair["rejected_reward"] and pair["chosen_arm"] != pair["rejected_arm"] for pair in without)
    assert len(without[0]["x"]) == D
    known = without[0]["chosen_id"]
    texts = [{"id": known, "prompt": "why?", "response": "because"}, {"id": 10**6, "prompt": "never asked"}]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, texts)))
    write_preferences(store, tmp_path / "p.jsonl", texts=read_texts(tmp_path / "texts.jsonl"), similarity=0.9)
    told = lines(tmp_path / "p.jsonl")
    assert {pair["chosen_id"] for pair in told} == {known}
    assert [(pair["prompt"], pair["chosen"], pair["rejected"]) for pair in told] == [
        ("why?", "because", pair["rejected_arm"]) for pair in without if pair["chosen_id"] == known
    ]
    with pytest.raises(SonaValueError, match=r"similarity: expected a number in \(0, 1\], got 2"):
        write_preferences(store, tmp_path / "p.jsonl", similarity=2.0)
    with pytest.raises(SonaValueError, match=r"expected a file \*.jsonl"):
        write_preferences(store, tmp_path / "p.parquet")
    (tmp_path / "texts.jsonl").write_text('{"id": 1, "prompt": "a"}\n{"id": "2"}\n')
    with pytest.raises(SonaValueError, match="jsonl:2: expected"):
        read_texts(tmp_path / "texts.jsonl")


# ---- the command ----


def test_the_command_writes_each_file_that_it_names(tmp_path: Path, capsys: pytest.CaptureFixture[str], rng: np.random.Generator):
    with sona.Router(["a", "b"], dim=D, store=tmp_path / "sona.db") as router:
        for _ in range(30):
            router.feedback(router.route(rng.normal(size=D)).id, 1.0)
    where = [str(tmp_path / name) for name in ("f.safetensors", "w.npy", "d.jsonl", "p.jsonl")]
    options = dict(zip(("--safetensors", "--merged", "--decisions", "--preferences"), where, strict=True))
    flat = [part for pair in options.items() for part in pair]
    assert main(["export", str(tmp_path / "sona.db"), *flat, "--json"]) == 0
    written = json.loads(capsys.readouterr().out)["written"]
    assert [done["path"] for done in written] == where
    assert len(lines(tmp_path / "d.jsonl")) == 30
    assert np.load(tmp_path / "w.npy").shape == (D + 1, D)
    assert main(["export", str(tmp_path / "sona.db"), "--decisions", where[2]]) == 0
    assert capsys.readouterr().out == f"decisions {where[2]}: 30 rows\n"
    assert main(["export", str(tmp_path / "sona.db"), "--peft", str(tmp_path / "lora")]) == 1
    assert "without names of layers" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "sona.db"), "--merged", where[1], "--version", "9"]) == 1
    assert "version: expected one of none" in capsys.readouterr().err
    for wrong, message in [
        ([], "expected at least one of --peft"),
        (["--decisions", where[2], "--model", "m"], "expected --merged or --gguf"),
    ]:
        with pytest.raises(SystemExit) as stop:
            main(["export", str(tmp_path / "sona.db"), *wrong])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
