"""Disks that are full or read-only, and files with any byte wrong or missing: named, survived, and never read as something else."""

import json
import os
import random
import sqlite3
import sys
import tempfile
import warnings
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from conftest import RunPython

from sona import Router, SonaConfig, SonaEngine, SonaError, SqliteStore
from sona.adapters import BaseLoRA
from sona.cli import main
from sona.errors import SonaCorruptError, SonaVersionError, SonaWarning
from sona.health import faults, snapshot_report, store_report
from sona.loops.background import BackgroundLoopConfig
from sona.loops.deep import DeepLoopConfig
from sona.loops.memory import state_name
from sona.patterns import PatternConfig
from sona.store import load_snapshot, save_snapshot

DIM = 4
ROOT = hasattr(os, "geteuid") and os.geteuid() == 0

# A file system of its own in a name space of mounts of its own: both go with the process.
PRIVATE = """
    import ctypes, os, resource, subprocess, sys, warnings
    from pathlib import Path
    import numpy as np
    from sona import BaseLoRA, Router, SonaEngine
    from sona.errors import SonaError, SonaStoreError
    from sona.health import faults, store_report
    from sona.loops.background import BackgroundLoopConfig
    from sona.loops.deep import DeepLoopConfig
    from sona.patterns import PatternConfig
    from sona.store import SqliteStore, load_snapshot

    CLONE_NEWNS = 0x20000

    def mount(*arguments):
        return subprocess.run(["mount", *arguments], capture_output=True, text=True)

    def private(place):
        "Whether this process has mounts of its own now."
        if os.geteuid() or ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
            return False
        return not mount("--make-rprivate", "/").returncode

    def make(path):
        config = BackgroundLoopConfig(patterns=PatternConfig(embedding_dim=4, k_clusters=2), min_trajectories=20)
        return Router(np.eye(3, 4), store=path, background=config, deep=DeepLoopConfig(dreams_per_cycle=2, episodes=20))

    def refused(call):
        try:
            call()
        except SonaStoreError as error:
            assert str(place) in str(error), error
            return str(error)
        raise AssertionError("it says that it worked")
"""

FULL = (
    PRIVATE
    + """
    place, how = Path(sys.argv[1]), sys.argv[2]
    if how == "tmpfs" and (not private(place) or mount("-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)).returncode):
        print("skip")
        sys.exit()
    rng, given = np.random.default_rng(0), {}

    def serve(rounds, sync=False):
        for x in rng.standard_normal((rounds, 4)):
            d = router.route(x)
            given[d.id] = round(rng.random(), 3)
            assert router.feedback(d.id, given[d.id], sync=sync)

    router, base = make(place / "s.db"), BaseLoRA(4, rank=2, num_layers=1)
    serve(40, sync=True)
    router.background_learn()
    router.engine.save(place / "snapshot")
    base.save(place / "base.safetensors")
    was = {path.name: path.read_bytes() for path in sorted(place.glob("snapshot/*")) + [place / "base.safetensors"]}
    ballast = place / "ballast"
    if how == "tmpfs":
        with open(ballast, "wb", buffering=0) as file:
            for size in (1 << 16, 1 << 10, 1):
                try:
                    while file.write(bytes(size)):
                        pass
                except OSError:
                    pass
    else:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
    serve(100)
    said = [
        refused(lambda: serve(1, sync=True)),
        refused(router.flush),
        refused(lambda: router.engine.save(place / "snapshot")),
        refused(lambda: router.engine.save(place / "another")),
        refused(lambda: base.save(place / "base.safetensors")),
    ]
    assert any("space" in each or "full" in each or "large" in each or "I/O" in each for each in said), said
    for cycle in (router.background_learn, router.deep_learn):
        try:
            cycle()
        except SonaError:
            pass
    serve(20)
    assert router.stats()["learned"] == len(given) == 161
    assert router.stats()["engine"]["store"]["failed"] > 0
    now = {path.name: path.read_bytes() for path in sorted(place.glob("snapshot/*")) + [place / "base.safetensors"]}
    assert now == was, (now.keys(), was.keys())
    assert not [path for path in place.rglob("*") if path.name.startswith(".tmp-")]
    load_snapshot(place / "snapshot")
    SonaEngine.load(place / "snapshot")
    BaseLoRA.load(place / "base.safetensors")
    if how == "tmpfs":
        ballast.unlink()
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    serve(5)
    router.flush()
    router.engine.save(place / "snapshot")
    base.save(place / "base.safetensors")
    assert router.deep_learn().status == "completed"
    router.close()
    assert faults(store_report(place / "s.db")) == []
    with SqliteStore(place / "s.db") as store:
        assert {row.id: reward for row, reward in store.decisions()} == given
    with make(place / "s.db") as again:
        assert again.stats()["engine"]["store"]["replayed"] == 0
    print(len(given))
"""
)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts and limits are those of Linux")
@pytest.mark.parametrize("how", ["tmpfs", pytest.param("limit", marks=pytest.mark.slow)] if ROOT else ["limit"])
def test_a_full_disk_stops_nothing_and_what_was_there_stays(how: str, tmp_path: Path, run_python: RunPython) -> None:
    """Store, state, snapshot, saved adapters and cycles while nothing can be written, and after there is room again."""
    (tmp_path / "disk").mkdir()
    said = run_python(FULL, tmp_path / "disk", how).stdout.strip()
    if said == "skip":
        pytest.skip("a small tmpfs needs root and the right to mount")
    assert said == "166"


READ_ONLY = (
    PRIVATE
    + """
    place, how = Path(sys.argv[1]), sys.argv[2]
    router, base = make(place / "s.db"), BaseLoRA(4, rank=2, num_layers=1)
    for x in np.random.default_rng(0).standard_normal((30, 4)):
        router.feedback(router.route(x).id, 1.0)
    router.engine.save(place / "snapshot")
    base.save(place / "base.safetensors")
    router.close()
    was = {str(path): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}
    if how == "mount":
        calls = (("--bind", str(place), str(place)), ("-o", "remount,ro,bind", str(place)))
        if not private(place) or any(mount(*call).returncode for call in calls):
            print("skip")
            sys.exit()
    else:
        for path in place.rglob("*"):
            path.chmod(0o555 if path.is_dir() else 0o444)
        place.chmod(0o555)
        if not os.geteuid():
            os.setgid(65534)
            os.setuid(65534)
        try:
            (place / "probe").touch()
            print("skip")
            sys.exit()
        except OSError:
            pass
    refused(lambda: make(place / "s.db"))
    refused(lambda: make(place / "new.db"))
    refused(lambda: SqliteStore(place / "s.db").append([]) or SqliteStore(place / "s.db").put_arms(["a"], b"", b""))
    engine = SonaEngine.load(place / "snapshot")  # to read is no change
    BaseLoRA.load(place / "base.safetensors")
    refused(lambda: engine.save(place / "snapshot"))
    refused(lambda: engine.save(place / "other"))
    refused(lambda: base.save(place / "base.safetensors"))
    assert {str(path): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()} == was
    print("done")
"""
)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts are those of Linux")
@pytest.mark.parametrize("how", ["mount", "mode"])
def test_a_place_that_is_read_only_is_a_store_error_and_stays_as_it_is(how: str, run_python: RunPython) -> None:
    with tempfile.TemporaryDirectory() as above:  # pytest's own directories let no other user in
        Path(above).chmod(0o755)
        place = Path(above) / "disk"
        place.mkdir()
        said = run_python(READ_ONLY, place, how).stdout.strip()
        for path in (place, *place.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
    if said == "skip":
        pytest.skip("a read-only mount needs root and the right to mount; modes bind nobody who is root")
    assert said == "done"


# ---- snapshots ----


def test_every_byte_and_every_length_of_a_snapshot(tmp_path: Path) -> None:
    """What is read is the newest, or the one before with a warning, or there is an error; `sona verify` knows which."""
    path = tmp_path / "s"
    wanted = []
    for seed in (1, 2):
        arrays = {"a": np.arange(3, dtype=np.int8) * seed, "b": np.array([seed / 3], np.float32)}
        save_snapshot(path, arrays, {"seed": seed}, fingerprint="m")
        wanted.append((arrays, {"seed": seed}))
    newest = json.loads((path / "manifest.json").read_text())["data"]["file"]
    files = sorted(path.iterdir(), key=lambda file: file.name not in ("manifest.json", newest))
    assert len(files) == 4
    outcomes = {"new": 0, "old": 0, "error": 0}
    rng = random.Random(0)
    for number, file in enumerate(files):
        sound = file.read_bytes()
        step = 1 if number < 2 else 7  # the newest: every one
        damaged = [sound[:at] + bytes([sound[at] ^ (1 << rng.randrange(8))]) + sound[at + 1 :] for at in range(0, len(sound), step)]
        damaged += [sound[:length] for length in range(0, len(sound), step)]
        for content in damaged:
            file.write_bytes(content)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    back, meta = load_snapshot(path)
                except (SonaCorruptError, SonaVersionError):
                    outcomes["error"] += 1
                    assert faults(snapshot_report(path))
                    continue
            which = 1 if not caught else 0
            assert meta == wanted[which][1]
            assert all(np.array_equal(back[name], array) and back[name].dtype == array.dtype for name, array in wanted[which][0].items())
            outcomes["new" if which else "old"] += 1
            if which == 0 and outcomes["old"] % 8 == 0:
                assert faults(snapshot_report(path))
        file.write_bytes(sound)
    assert outcomes["error"] == 0  # one file at a time: the other snapshot is sound
    assert outcomes["new"] > 100
    assert outcomes["old"] > 1000


def test_a_saved_engine_is_verified_falls_back_and_knows_its_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As its user sees it: save, `sona verify`, damage, load, another model, a snapshot of something else."""
    path, states = tmp_path / "saved", []
    for step in range(2):
        engine = SonaEngine(SonaConfig(hidden_dim=DIM), model_fingerprint="bge")
        for x in np.random.default_rng(step).normal(size=(5, DIM)):
            tid = engine.begin_trajectory(x)
            engine.add_step(tid, activations=x, reward=1.0)
            engine.end_trajectory(tid)
        engine.save(path)
        states.append(engine.state())
    assert main(["verify", str(path)]) == 0
    said = capsys.readouterr().out
    assert said.count("sound") == 2
    assert "model 'bge'" in said
    with pytest.raises(SonaVersionError, match="expected a snapshot of model 'minilm', got one of 'bge'"):
        SonaEngine.load(path, model_fingerprint="minilm")
    newest = path / json.loads((path / "manifest.json").read_text())["data"]["file"]
    newest.write_bytes(newest.read_bytes()[:-1])
    assert main(["verify", str(path)]) == 1
    assert "does not match the checksum" in capsys.readouterr().out
    assert main(["verify", str(path), "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["snapshots"]) == 2
    with pytest.warns(SonaWarning, match="going back"):
        again = SonaEngine.load(path, model_fingerprint="bge")
    assert {k: v.tobytes() for k, v in again.state().items()} == {k: v.tobytes() for k, v in states[0].items()}
    for meta in (
        {},
        {"config": {}},
        {"config": {"hidden_dim": DIM, "invented_later": 1}, "name": "x"},
        {"config": {"hidden_dim": -1}, "name": "x"},
    ):
        save_snapshot(tmp_path / "other", {}, meta)
        with pytest.raises(SonaVersionError, match="expected the snapshot of an engine"):
            SonaEngine.load(tmp_path / "other")
    (tmp_path / "empty").mkdir()
    assert main(["verify", str(tmp_path / "empty")]) == 1
    assert "without manifest.json" in capsys.readouterr().err


# ---- stores ----

TABLES = ("decisions", "feedback", "trajectories", "state", "arms", "versions", "vectors", "namespaces", "counters")
# What has a checksum; the numbers of a decision, a reward and a trajectory's row have none, nor has under which name and number a thing is.
SEALED = {"state": "blob", "arms": "names, vectors, costs", "versions": "verdict, reason, about, factors", "vectors": "vector"}


def make(path: Path) -> Router:
    return Router(
        np.eye(3, DIM),
        store=path,
        background=BackgroundLoopConfig(patterns=PatternConfig(embedding_dim=DIM, k_clusters=2), min_trajectories=10, serve="screened"),
        deep=DeepLoopConfig(dreams_per_cycle=2, episodes=10),
    )


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A store with everything that a store can hold."""
    path = tmp_path / "s.db"
    with make(path) as router:
        rng = np.random.default_rng(0)
        for x in rng.standard_normal((30, DIM)):
            router.feedback(router.route(x).id, round(rng.random(), 2), source=f"s{rng.integers(3)}")
        router.engine.memory.add(np.ones(DIM), "a note")
        router.background_learn()
        router.deep_learn()
        tid = router.engine.begin_trajectory(np.ones(DIM))
        router.engine.add_step(tid, activations=np.ones(DIM))
        router.engine.end_trajectory(tid, 0.5)
    return path


def content(path: Path) -> dict[str, list[str]]:
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        connection.text_factory = bytes
        found = {table: sorted(map(repr, connection.execute(f"SELECT * FROM {table}"))) for table in TABLES}
        for table, columns in SEALED.items():
            found[f"{table}: {columns}"] = sorted(map(repr, connection.execute(f"SELECT {columns} FROM {table}")))
        return found


@pytest.mark.parametrize("flips", [40, pytest.param(4000, marks=pytest.mark.slow)])
def test_a_flipped_byte_of_a_store_is_found_or_changes_nothing(flips: int, filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes that are in use, each flipped in turn: `sona verify` says so or everything reads as before; a router opens or says why not."""
    sound, before, rng = filled.read_bytes(), content(filled), random.Random(flips)
    places = [at for at, byte in enumerate(sound) if byte] if flips < 1000 else range(len(sound))
    count = {"found": 0, "unchanged": 0, "escaped": 0, "opened": 0, "refused": 0}
    where: dict[tuple[str, ...], int] = {}
    work = filled.with_name("work.db")
    for number, at in enumerate(rng.sample(places, flips)):
        for name in ("", "-wal", "-shm"):
            work.with_name(f"work.db{name}").unlink(missing_ok=True)
        work.write_bytes(sound[:at] + bytes([sound[at] ^ (1 << rng.randrange(8))]) + sound[at + 1 :])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of going back to the state before
            try:
                found = faults(store_report(work))
            except SonaError as error:
                found = [str(error)]
            if found:
                count["found"] += 1
            else:
                now = content(work)
                changed = tuple(name for name in before if now[name] != before[name])
                count["escaped" if changed else "unchanged"] += 1
                if changed:
                    where[changed] = where.get(changed, 0) + 1
            if number % 4 == 0:
                try:
                    with make(work) as router:
                        assert router.route(np.ones(DIM)).index in (0, 1, 2)
                        assert np.isfinite(router.apply_batch(np.eye(DIM))).all()
                    count["opened"] += 1
                except SonaError:
                    count["refused"] += 1
    assert not [name for changed in where for name in changed if ":" in name], where
    assert count["escaped"] <= 4 + flips / 20
    assert count["found"] >= flips / 40
    assert count["opened"] > 0
    if flips > 1000:
        with capsys.disabled():
            print(f"\n{flips} flips of {len(sound)} bytes: {count}, escaped in {where}")


def test_verify_and_inspect_go_on_where_one_part_is_damaged(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Memory, patterns, learned state, a version, the arms: each is named, and the others are shown."""
    assert main(["inspect", str(filled)]) == 0
    whole = capsys.readouterr().out
    assert "memory of" in whole
    sound = filled.read_bytes()
    damage = {
        f"UPDATE state SET blob = zeroblob(length(blob)) WHERE name = '{state_name('default')}'": "memory-",
        "UPDATE state SET blob = zeroblob(length(blob)) WHERE name LIKE '%.patterns-%'": "patterns-",
        "UPDATE state SET blob = zeroblob(length(blob)) WHERE name = 'default'": "'default'",
        "UPDATE versions SET factors = zeroblob(length(factors))": "version",
        "UPDATE arms SET vectors = zeroblob(length(vectors))": "arm set",
    }
    for statement, name in damage.items():
        filled.write_bytes(sound)
        with closing(sqlite3.connect(filled, isolation_level=None)) as connection:
            assert connection.execute(statement).rowcount > 0, statement
        assert main(["inspect", str(filled)]) == 1
        said = capsys.readouterr().out
        assert name in said
        assert "30 decisions, 30 rewards" in said
        assert ("memory of" in said) == (name != "memory-")
        assert main(["verify", str(filled)]) == 1
        assert name in capsys.readouterr().out
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SonaWarning)
            try:
                make(filled).close()
            except SonaError:
                assert name in ("'default'", "arm set")  # what is learned is not thrown away behind anybody's back
    filled.write_bytes(sound)
    with SqliteStore(filled) as store:
        assert store.integrity() == []


def test_saved_adapters_are_the_old_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails at any system call leaves the file of before and nothing beside it."""
    path = tmp_path / "base.safetensors"
    base = BaseLoRA(DIM, rank=1, num_layers=1)
    base.layers[0].append(np.ones(DIM), np.ones(DIM))
    base.save(path)
    sound = path.read_bytes()
    base.layers[0].append(np.arange(DIM), np.ones(DIM))
    for call in ("write", "fsync", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr(os, call, lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(SonaError, match="No space left"):
                base.save(path)
        assert path.read_bytes() == sound
        assert os.listdir(tmp_path) == [path.name]
    base.save(path)
    assert path.read_bytes() != sound
    for bad in (tmp_path / "no" / "base", tmp_path):
        with pytest.raises(SonaError, match=str(bad)):
            base.save(bad)
