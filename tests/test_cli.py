"""Promises of the command: what it prints, where it writes, and that every failure is one clear line and the right exit code."""

import json
import os
import re
import sqlite3
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import sona
from sona import Router, SonaError
from sona.cli import main
from sona.health import OPTIONAL

ORDER = ["frozen", "sona", "LinUCB"]


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 1) -> str:
    """The one line that a failing command leaves."""
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("sona: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_demo_prints_a_table_writes_its_files_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["demo", "--rounds", "600", "--seed", "3", "--out", str(tmp_path / "demo")]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert [line.split()[0] for line in first.splitlines() if line.startswith(tuple(ORDER)) and "[" not in line][:3] == ORDER
    assert "resumed" not in first
    assert "run the same command again" in first
    assert {"report.json", "figure.png", "sona.db"} <= set(os.listdir(tmp_path / "demo"))
    assert main(arguments) == 0
    second = capsys.readouterr().out
    assert "rounds 601 to 1200" in second
    assert "resumed: first 500 of this run 0." in second


def test_demo_json_is_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--rounds", "60", "--world", "few", "--out", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "report.json").read_text())
    run = report["runs"][-1]
    assert list(run["policies"]) == ORDER
    for name, line in run["policies"].items():
        assert {"first", "last", "regret", "held_out", "route", "feedback", "state_bytes"} == line.keys()
        assert 0 < line["route"]["p50_us"] <= line["route"]["p99_us"]
        assert (line["feedback"] is None) == (name == "frozen")
        assert (line["state_bytes"] > 0) == (name != "frozen")


def test_a_story_prints_its_table_and_writes_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["demo", "--story", "drift", "--rounds", "300", "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert "every digit has another answer" in capsys.readouterr().out
    assert {"report.json", "figure.png"} <= set(os.listdir(tmp_path))
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "report.json").read_text())
    assert "a story has its own world" in fails([*arguments, "--world", "few"], capsys)


@pytest.mark.parametrize("other", [["--seed", "1"], ["--world", "few"]])
def test_demo_refuses_the_store_of_another_world(tmp_path: Path, capsys: pytest.CaptureFixture[str], other: list[str]) -> None:
    base = ["demo", "--rounds", "20", "--out", str(tmp_path)]
    assert main(base) == 0
    before = (tmp_path / "report.json").read_bytes()
    capsys.readouterr()
    message = fails([*base, *other], capsys)
    assert "holds world shift, seed 0" in message
    assert "--out" in message
    assert (tmp_path / "report.json").read_bytes() == before


def test_demo_without_matplotlib_still_prints_its_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["demo", "--rounds", "20", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "pip install 'sona[plot]'" in out
    assert "figure.png" not in out


def test_an_out_that_cannot_be_made_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "file" in fails(["demo", "--rounds", "20", "--out", str(tmp_path / "file" / "demo")], capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dance"],
        ["demo", "--world", "flat"],
        ["demo", "--rounds", "0"],
        ["demo", "--rounds", "many"],
        ["demo", "--seed", "-1"],
        ["replay"],
        ["replay", "f.npz", "--held-out", "1"],
        ["replay", "f.npz", "--held-out", "x"],
        ["replay", "f.npz", "--labelled", "0"],
        ["replay", "f.npz", "--unknown"],
        ["verify"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: sona" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["demo"], ["replay"], ["doctor"], ["verify"]], ids=lambda command: " ".join(command) or "sona")
def test_help_and_version(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    assert "usage: sona" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"sona {sona.__version__}\n"


def test_it_is_a_module_too() -> None:
    done = subprocess.run([sys.executable, "-m", "sona", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"sona {sona.__version__}\n"


def labelled(path: Path) -> str:
    rng = np.random.default_rng(0)
    y = np.arange(120) % 3
    np.savez(path, X=np.eye(3)[y] + 0.3 * rng.standard_normal((120, 3)), y=y)
    return str(path)


def test_replay_of_labelled_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = labelled(tmp_path / "data.npz")
    assert main(["replay", path, "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "frozen" in out.splitlines()[5]
    assert "sona" in out.splitlines()[6]
    assert main(["replay", path, "--json", "--no-prior", "--standardise", "--held-out", "0.5"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["held_out_rows"] == 60
    assert report["prior"] == "random orthonormal vectors"


def test_replay_of_logged_decisions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"x": rng.standard_normal(3).tolist(), "arm": "ab"[rng.integers(2)], "reward": float(rng.integers(2)), "propensity": 0.5}
        for _ in range(300)
    ]
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    (tmp_path / "arms.json").write_text(json.dumps({"a": [1, 0, 0], "b": [0, 1, 0]}))
    arguments = ["replay", str(path), "--arms", str(tmp_path / "arms.json")]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "replay (match)" in out
    assert "95 % confidence" in out
    assert "refused" not in out
    assert main([*arguments, "--json", "--reward-range", "-1", "1"]) == 0
    found = json.loads(capsys.readouterr().out)["estimates"]["all rows"]["sona"]["snips"]
    assert -1 <= found["low"] <= found["value"] <= found["high"] <= 1

    path.write_text(path.read_text() + '{"x": [1, 2, 3], "arm": "a"}\n')
    assert f"{path}, line 301: field reward is missing" in fails(arguments, capsys)
    assert main([*arguments, "--skip-bad"]) == 0
    out = capsys.readouterr().out
    assert "skipped 1 bad lines, the first:\n  line 301: field reward is missing" in out


def test_a_missing_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for ending in ("npz", "csv", "jsonl", "txt"):
        assert f"nothing.{ending}" in fails(["replay", str(tmp_path / f"nothing.{ending}")], capsys)


def store_with_decisions(path: Path) -> None:
    with Router({"a": [1.0, 0.0], "b": [0.0, 1.0]}, store=path) as router:
        for step in range(20):
            router.feedback(router.route([1.0, 0.1 * step]).id, 1.0)


def test_doctor_describes_the_machine_and_a_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store_with_decisions(tmp_path / "sona.db")
    monkeypatch.setenv("SONA_DISABLE", "1")
    assert main(["doctor", str(tmp_path / "sona.db")]) == 0
    out = capsys.readouterr().out
    assert sona.__version__ in out
    assert "scalar" in out
    assert "SONA_DISABLE='1'" in out
    assert "20 decisions" in out
    assert "sound" in out
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["isas"] == list(sona.isas())
    assert report["cores"] >= 1
    assert report["packages"]["numpy"] == np.__version__


def test_doctor_names_the_extra_that_is_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sona.health.OPTIONAL", {"no-such-package-here": "plot"})
    assert main(["doctor"]) == 0
    assert "no-such-package-here: pip install 'sona[plot]'" in capsys.readouterr().out


def test_verify_finds_what_is_broken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sona.db"
    store_with_decisions(path)
    assert main(["verify", str(path)]) == 0
    assert "sound" in capsys.readouterr().out
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE state SET blob = zeroblob(length(blob))")
    connection.close()
    assert main(["verify", str(path)]) == 1
    assert "checksum" in capsys.readouterr().out
    assert main(["verify", str(path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["namespaces"]["default"]["faults"]
    assert main(["doctor", str(path)]) == 1
    assert "2 faults\n" in capsys.readouterr().out


def test_doctor_and_verify_take_a_snapshot_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with sona.SonaEngine(sona.SonaConfig(hidden_dim=4)) as engine:
        engine.save(tmp_path / "snapshot")
    for command in ("verify", "doctor"):
        assert main([command, str(tmp_path / "snapshot")]) == 0
        assert "manifest.json: " in capsys.readouterr().out
    assert main(["doctor", "--json", str(tmp_path / "snapshot")]) == 0
    assert [about["fault"] for about in json.loads(capsys.readouterr().out)["snapshot"]["snapshots"]] == [None]
    next((tmp_path / "snapshot").glob("*.safetensors")).write_bytes(b"")
    for command in ("verify", "doctor"):
        assert main([command, str(tmp_path / "snapshot")]) == 1
        assert "sound" not in capsys.readouterr().out
    assert "expected a store, a file or a URL, got the directory" in fails(["inspect", str(tmp_path / "snapshot")], capsys)


def test_looking_at_a_file_does_not_make_a_store_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("verify", "doctor"):
        assert "no such store" in fails([command, str(tmp_path / "nothing.db")], capsys)
        (tmp_path / "text.db").write_text("not a database")
        assert "text.db" in fails([command, str(tmp_path / "text.db")], capsys)
        sqlite3.connect(tmp_path / "empty.db").close()
        (tmp_path / "empty.db").touch()
        assert "empty.db" in fails([command, str(tmp_path / "empty.db")], capsys)
    assert sorted(os.listdir(tmp_path)) == ["empty.db", "text.db"]


def test_an_error_of_several_lines_becomes_one(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise SonaError("first\nsecond \x1b[31m")

    monkeypatch.setattr("sona.health.machine_report", broken)
    assert fails(["doctor"], capsys) == "sona: error: first\\nsecond \\x1b[31m\n"


def test_ctrl_c_is_exit_code_130(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sona.health.machine_report", interrupted)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "interrupted\n"

    calls = iter(range(1000))
    monkeypatch.setattr("sona.demo.linucb.LinUCB.feedback", lambda *_: interrupted() if next(calls) == 30 else None)
    assert main(["demo", "--rounds", "100", "--out", str(tmp_path)]) == 130
    assert "interrupted after 30 rounds; run the same command again to resume" in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_traceback() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; from sona.cli import main; input(); sys.exit(main(['doctor']))"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.close()
    child.stdin.write(b"\n")
    child.stdin.close()
    assert child.stderr.read() == b""
    child.stderr.close()
    assert child.wait() == 1


def test_the_installed_command_is_main() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"sona": "sona.cli:main"}


def test_doctor_knows_every_package_that_an_extra_brings():
    extras = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    ours = {extra: packages for extra, packages in extras.items() if extra not in ("bench", "dev", "models")}
    named = {(re.match(r"[\w-]+", package).group(), extra) for extra, packages in ours.items() for package in packages}
    assert set(OPTIONAL.items()) == named
