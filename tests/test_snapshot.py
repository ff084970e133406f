"""Snapshots: the old one or the new one, as it was, whatever happens; anything else is named and refused."""

import errno
import hashlib
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sona.errors import SonaCorruptError, SonaStoreError, SonaTypeError, SonaValueError, SonaVersionError, SonaWarning
from sona.store import load_snapshot, save_snapshot, snapshot

GOLDEN = Path(__file__).parent / "golden" / "snapshot-v1"


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"base.up": rng.standard_normal((4, 6)).astype(np.float32), "counts": rng.integers(0, 9, 5)}


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in a)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "snapshot"


@pytest.fixture
def saved(path: Path) -> Path:
    """A directory with two generations: seed 1 with meta 1, then seed 2 with meta 2."""
    for seed in (1, 2):
        save_snapshot(path, arrays(seed), {"seed": seed}, fingerprint="minilm-v2")
    return path


def data_file(path: Path, manifest: str = "manifest.json") -> Path:
    return path / json.loads((path / manifest).read_text())["data"]["file"]


def reseal(path: Path, change) -> None:
    """Change the newest manifest and make its checksum right again."""
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"]
    change(manifest)
    (path / "manifest.json").write_bytes(snapshot._seal(manifest))


# -- what comes back -----------------------------------------------------------------------------------------------


def test_a_snapshot_comes_back_as_it_was(path):
    kept = {
        **arrays(),
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 7), np.float16),
        "flags": np.array([True, False]),
        "bytes": np.arange(256, dtype=np.uint8),
        "deep": np.ones((1,) * 8, np.int16),
    }
    meta = {"a": [1, 2.5, None, True, "é\ud800"], "b": {"c": (1, 2)}, "big": 2**80}
    digest = save_snapshot(path, kept, meta)
    back, found = load_snapshot(path)
    assert equal(back, kept)
    assert {name: array.shape for name, array in back.items()} == {name: array.shape for name, array in kept.items()}
    assert all(array.flags.writeable and array.flags.c_contiguous and array.flags.owndata for array in back.values())
    assert found == {**meta, "b": {"c": [1, 2]}}
    assert digest == hashlib.sha256(data_file(path).read_bytes()).hexdigest()


def test_an_empty_snapshot_comes_back(path):
    save_snapshot(path, {}, {})
    assert load_snapshot(path) == ({}, {})


LAYOUTS = {
    "transposed": lambda a: a.T,
    "negative stride": lambda a: a[::-1],
    "negative stride, columns": lambda a: a[:, ::-1],
    "Fortran order": np.asfortranarray,
    "every second": lambda a: a[::2, 1::2],
    "broadcast": lambda a: np.broadcast_to(a[0], (3, a.shape[1])),
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "read-only": lambda a: (a.setflags(write=False), a)[1],
    "misaligned": lambda a: np.frombuffer(b"x" + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape),
    "subclass": lambda a: a.view(np.matrix),
}


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int16"])
def test_the_layout_in_memory_does_not_matter(path, layout, dtype):
    array = LAYOUTS[layout](np.arange(24).reshape(4, 6).astype(dtype))
    save_snapshot(path, {"a": array}, {})
    back = load_snapshot(path)[0]["a"]
    assert back.dtype == np.dtype(dtype)
    assert np.array_equal(back, array)


@settings(max_examples=60, deadline=None)
@given(
    array=hnp.arrays(
        st.sampled_from(["<f4", ">f4", "<f8", "<i8", ">i2", "?", "<f2"]),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
        elements={"allow_nan": False, "allow_infinity": False},
    ),
    axes=st.randoms(use_true_random=False),
)
def test_every_finite_array_survives(tmp_path_factory, array, axes):
    order = list(range(array.ndim))
    axes.shuffle(order)
    view = array.transpose(order)[(..., *(slice(None, None, axes.choice([1, -1, 2])) for _ in order))]
    path = tmp_path_factory.mktemp("property") / "s"
    save_snapshot(path, {"a": view}, {})
    assert np.array_equal(load_snapshot(path)[0]["a"], view)


def test_an_encoder_that_writes_other_data_is_caught(path, monkeypatch):
    from safetensors import numpy as safetensors

    real = safetensors.save
    monkeypatch.setattr(safetensors, "save", lambda kept: real({name: array + 1 for name, array in kept.items()}))
    with pytest.raises(SonaStoreError, match="does not survive"):
        save_snapshot(path, arrays(), {})
    assert not path.exists()


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_non_finite_arrays_are_not_saved(saved, value, dtype):
    bad = np.ones(5, dtype)
    bad[3] = value
    before = sorted(os.listdir(saved))
    with pytest.raises(SonaValueError, match="finite values in array 'bad'"):
        save_snapshot(saved, {**arrays(), "bad": bad}, {})
    assert sorted(os.listdir(saved)) == before


def test_non_finite_arrays_are_not_loaded(path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(snapshot, "_finite", lambda array: True)
        save_snapshot(path, {"a": np.array([np.nan])}, {})
    with pytest.raises(SonaCorruptError, match="finite values in array 'a'"):
        load_snapshot(path)


@pytest.mark.parametrize("name", ["", "../up", "a/b", "a\0", "é", ".hidden", "x" * 129, "__metadata__\n", 7])
def test_array_names_come_from_an_allow_list(path, name):
    with pytest.raises(SonaValueError, match="array names"):
        save_snapshot(path, {name: np.zeros(1)}, {})
    assert not path.exists()


@pytest.mark.parametrize(
    ("array", "error"),
    [
        ([1.0], SonaTypeError),
        (np.array([object()]), SonaTypeError),
        (np.array(["text"]), SonaTypeError),
        (np.zeros(1, complex), SonaTypeError),
        (np.zeros(1, "M8[s]"), SonaTypeError),
        (np.zeros((1,) * 9), SonaValueError),
    ],
)
def test_arrays_are_of_plain_numbers(path, array, error):
    with pytest.raises(error, match="array 'a'"):
        save_snapshot(path, {"a": array}, {})
    assert not path.exists()


@pytest.mark.parametrize(
    ("meta", "error"),
    [
        ({1: "key"}, SonaTypeError),
        ({"a": {2: 3}}, SonaTypeError),
        ({"a": np.float32(1)}, SonaTypeError),
        ({"a": b"bytes"}, SonaTypeError),
        ({"a": [float("nan")]}, SonaValueError),
    ],
)
def test_meta_is_json(path, meta, error):
    with pytest.raises(error, match="meta"):
        save_snapshot(path, {}, meta)
    with pytest.raises(SonaTypeError, match="fingerprint"):
        save_snapshot(path, {}, {}, fingerprint=7)
    assert not path.exists()


def test_sizes_are_bounded_both_ways(path, monkeypatch):
    save_snapshot(path, arrays(), {})
    monkeypatch.setattr(snapshot, "MAX_BYTES", 100)
    with pytest.raises(SonaValueError, match="at most 100 bytes of arrays"):
        save_snapshot(path, arrays(), {})
    with pytest.raises(SonaCorruptError, match="impossible"):
        load_snapshot(path)
    monkeypatch.setattr(snapshot, "MAX_MANIFEST_BYTES", 200)
    with pytest.raises(SonaValueError, match="meta"):
        save_snapshot(path, {}, {"text": "x" * 300})
    with pytest.raises(SonaCorruptError, match="at most 200 bytes"):
        load_snapshot(path)


@pytest.mark.parametrize("bad", [7, None, b"path"])
def test_a_path_is_a_path(bad):
    for call in (lambda: save_snapshot(bad, {}, {}), lambda: load_snapshot(bad)):
        with pytest.raises(SonaTypeError, match="path"):
            call()


def test_places_that_hold_no_snapshot_are_named(tmp_path):
    for bad in ("", "a\0b"):
        with pytest.raises(SonaValueError, match="path of a directory"):
            load_snapshot(bad)
    with pytest.raises(SonaStoreError, match="absent"):
        load_snapshot(tmp_path / "absent")
    with pytest.raises(SonaStoreError, match=r"without manifest\.json"):
        load_snapshot(tmp_path)
    with pytest.raises(SonaStoreError, match="missing"):
        save_snapshot(tmp_path / "missing" / "snapshot", {}, {})
    (tmp_path / "file").touch()
    with pytest.raises(SonaStoreError, match="file"):
        save_snapshot(tmp_path / "file", {}, {})


# -- versions and models -------------------------------------------------------------------------------------------


def test_a_snapshot_of_format_version_1_is_read():
    back, meta = load_snapshot(GOLDEN, fingerprint="minilm-v2")
    assert back["up"].tolist() == [[1.0, -2.0], [0.5, 3.25]]
    assert back["up"].dtype == np.float32
    assert back["n"].tolist() == [1, 2, 3]
    assert meta == {"arms": ["small", "large"], "applied_seq": 7}


def test_a_newer_format_is_refused_with_both_versions_named(saved):
    reseal(saved, lambda manifest: manifest.update(version=9, library="3.1.0", data="laid out otherwise"))
    with pytest.raises(SonaVersionError, match=r"format 1 or older .* got 9 \(sona 3\.1\.0\)"):
        load_snapshot(saved)


def test_the_snapshot_of_another_model_is_refused_with_both_named(saved):
    assert load_snapshot(saved, fingerprint="minilm-v2")[1] == {"seed": 2}
    assert load_snapshot(saved)[1] == {"seed": 2}
    with pytest.raises(SonaVersionError, match="'bge-small', got one of 'minilm-v2'"):
        load_snapshot(saved, fingerprint="bge-small")


# -- damage --------------------------------------------------------------------------------------------------------


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 0x10
    file.write_bytes(content)


DAMAGE = {
    "payload bit flipped": lambda path: flip(data_file(path), -1),
    "header bit flipped": lambda path: flip(data_file(path), 10),
    "data truncated": lambda path: os.truncate(data_file(path), 100),
    "data empty": lambda path: os.truncate(data_file(path), 0),
    "data longer": lambda path: data_file(path).write_bytes(data_file(path).read_bytes() + b"x"),
    "data missing": lambda path: data_file(path).unlink(),
    "data is a link": lambda path: (data_file(path).rename(path / "moved"), data_file(path).symlink_to(path / "moved")),
    "data is a directory": lambda path: (data_file(path).unlink(), data_file(path).mkdir()),
    "data is a pipe": lambda path: (data_file(path).unlink(), os.mkfifo(data_file(path))),
    "manifest truncated": lambda path: os.truncate(path / "manifest.json", 40),
    "manifest empty": lambda path: os.truncate(path / "manifest.json", 0),
    "manifest missing": lambda path: (path / "manifest.json").unlink(),
    "manifest of other magic": lambda path: (path / "manifest.json").write_bytes(b"\x80\x04pickle."),
    "manifest not an object": lambda path: (path / "manifest.json").write_text("[1]"),
    "manifest deeply nested": lambda path: (path / "manifest.json").write_text("[" * 100_000),
    "manifest with NaN": lambda path: (path / "manifest.json").write_text('{"sha256": NaN}'),
    "manifest edited": lambda path: (path / "manifest.json").write_text((path / "manifest.json").read_text().replace("minilm", "minimi")),
    "version flipped": lambda path: (path / "manifest.json").write_text(
        (path / "manifest.json").read_text().replace('"version": 1', '"version": 3')
    ),
    "manifest is a link": lambda path: (
        (path / "manifest.json").rename(path / "moved.json"),
        (path / "manifest.json").symlink_to(path / "moved.json"),
    ),
    "sealed with another format": lambda path: reseal(path, lambda m: m.update(format="other")),
    "sealed without the checksum of its data": lambda path: reseal(path, lambda m: m["data"].pop("sha256")),
    "sealed with a path": lambda path: reseal(path, lambda m: m["data"].update(file="../../etc/passwd")),
    "sealed with a giant shape": lambda path: reseal(path, lambda m: m["arrays"]["counts"].update(shape=[2**31 - 1] * 8)),
    "sealed with a negative shape": lambda path: reseal(path, lambda m: m["arrays"]["counts"].update(shape=[-5])),
    "sealed with another shape": lambda path: reseal(path, lambda m: m["arrays"]["counts"].update(shape=[4])),
    "sealed with another dtype": lambda path: reseal(path, lambda m: m["arrays"]["counts"].update(dtype="float64")),
    "sealed with a bad dtype": lambda path: reseal(path, lambda m: m["arrays"]["counts"].update(dtype="object")),
    "sealed with a bad name": lambda path: reseal(path, lambda m: m["arrays"].update({"../x": m["arrays"].pop("counts")})),
    "sealed with a giant size": lambda path: reseal(path, lambda m: m["data"].update(bytes=2**60)),
    "sealed without arrays": lambda path: reseal(path, lambda m: m.pop("arrays")),
    "sealed with a list as meta": lambda path: reseal(path, lambda m: m.update(meta=[])),
    "sealed around other data": lambda path: (
        data_file(path).write_bytes(b"\xff" * 200),
        reseal(path, lambda m: m["data"].update(bytes=200, sha256=hashlib.sha256(b"\xff" * 200).hexdigest())),
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_falls_back_to_the_snapshot_before_it(saved, damage):
    DAMAGE[damage](saved)
    with pytest.warns(SonaWarning, match="going back"):
        back, meta = load_snapshot(saved)
    assert equal(back, arrays(1))
    assert meta == {"seed": 1}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_save_after_damage_keeps_the_sound_snapshot_as_fall_back(saved, damage):
    DAMAGE[damage](saved)
    save_snapshot(saved, arrays(3), {"seed": 3})
    assert load_snapshot(saved)[1] == {"seed": 3}
    flip(data_file(saved), -1)
    with pytest.warns(SonaWarning, match="going back"):
        assert load_snapshot(saved)[1] == {"seed": 1}


def test_when_both_are_damaged_both_are_named(saved):
    flip(data_file(saved), -1)
    flip(data_file(saved, "manifest.previous.json"), -1)
    with pytest.raises(SonaCorruptError, match=r"no sound snapshot: .*checksum.*; .*checksum"):
        load_snapshot(saved)


def test_every_flipped_bit_of_a_small_snapshot_is_found(path):
    save_snapshot(path, {"a": np.arange(3, dtype=np.int8)}, {"k": "v"})
    for file in (path / "manifest.json", data_file(path)):
        sound = file.read_bytes()
        for at in range(len(sound)):
            for bit in (1, 32):
                file.write_bytes(sound[:at] + bytes([sound[at] ^ bit]) + sound[at + 1 :])
                try:
                    back = load_snapshot(path)
                except (SonaCorruptError, SonaVersionError):
                    continue
                # White space of the manifest's layout, and nothing else, may change unnoticed.
                assert back[1] == {"k": "v"}
                assert sound[at : at + 1].isspace()
        file.write_bytes(sound)


# -- failing disks and deaths --------------------------------------------------------------------------------------

CALLS = ("mkdir", "open", "write", "fsync", "replace", "unlink")


class Death(BaseException):
    """The process is gone: nothing after it runs, no clean-up either."""


class Fate:
    """Makes the n-th of the watched system calls fail; `stay` lets all later ones fail as well."""

    def __init__(self, monkeypatch, error: BaseException, *, stay: bool, calls=CALLS):
        self.calls = 0
        self.fatal: int | None = None
        for name in calls:
            monkeypatch.setattr(os, name, self.watched(getattr(os, name), error, stay))

    def watched(self, real, error, stay):
        def call(*arguments, **options):
            self.calls += 1
            if self.fatal is not None and (self.calls == self.fatal or (stay and self.calls > self.fatal)):
                raise error
            return real(*arguments, **options)

        return call


def fates(directory: Path, error: BaseException, *, stay: bool, calls=CALLS):
    """Save seed 3 over `saved`-like directories with each system call failing in turn; yields each directory after it."""
    n = 0
    while True:
        n += 1
        path = directory / str(n)
        for seed in (1, 2):
            save_snapshot(path, arrays(seed), {"seed": seed})
        with pytest.MonkeyPatch.context() as patched:
            fate = Fate(patched, error, stay=stay, calls=calls)
            fate.fatal = n
            failed: BaseException | None = None
            try:
                save_snapshot(path, arrays(3), {"seed": 3})
            except (SonaStoreError, Death) as exc:
                failed = exc
            reached = fate.calls >= n
        if not reached:
            assert failed is None
            return
        yield path, failed


def test_death_at_any_system_call_leaves_the_old_or_the_new(tmp_path):
    seeds = []
    for path, failed in fates(tmp_path, Death(), stay=True):
        back, meta = load_snapshot(path)
        assert equal(back, arrays(meta["seed"]))
        assert failed is not None or meta == {"seed": 3}
        seeds.append(meta["seed"])
        # The next writer finds its way, cleans up, and has a fall-back.
        save_snapshot(path, arrays(4), {"seed": 4})
        assert len(os.listdir(path)) == 4
        flip(data_file(path), -1)
        with pytest.warns(SonaWarning, match="going back"):
            assert load_snapshot(path)[1] == {"seed": meta["seed"]}
    assert seeds == sorted(seeds)
    assert set(seeds) == {2, 3}
    assert len(seeds) > 10


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_failing_system_call_is_a_store_error_and_leaves_no_litter(tmp_path, number):
    count = 0
    for path, failed in fates(tmp_path, OSError(number, os.strerror(number)), stay=False, calls=("write", "fsync", "replace")):
        count += 1
        assert isinstance(failed, SonaStoreError)
        assert str(path) in str(failed)
        assert os.strerror(number) in str(failed)
        assert load_snapshot(path)[1]["seed"] in (2, 3)
        assert not [name for name in os.listdir(path) if name.startswith(".tmp-")]
        save_snapshot(path, arrays(4), {"seed": 4})
        assert load_snapshot(path)[1] == {"seed": 4}
    assert count >= 9


def test_data_reaches_the_disk_before_the_manifest_names_it(saved, monkeypatch):
    events = []
    real = {name: getattr(os, name) for name in ("write", "fsync", "replace")}
    identity = lambda fd: os.fstat(fd).st_ino  # noqa: E731
    monkeypatch.setattr(os, "write", lambda fd, data: (events.append(("write", identity(fd))), real["write"](fd, data))[1])
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(("fsync", identity(fd))), real["fsync"](fd))[1])

    def replace(source, target, **options):
        events.append(("replace", os.stat(saved / source).st_ino))
        events.append(("named", target))
        return real["replace"](source, target, **options)

    monkeypatch.setattr(os, "replace", replace)
    save_snapshot(saved, arrays(3), {"seed": 3})
    directory = os.stat(saved).st_ino
    named = [(at, event[1]) for at, event in enumerate(events) if event[0] == "named"]
    assert [name.split("-")[0] for _, name in named] == ["state", "manifest.previous.json", "manifest.json"]
    for at, _ in named:
        file = events[at - 1][1]
        assert events.index(("write", file)) < events.index(("fsync", file)) < at - 1
        assert events[at + 1] == ("fsync", directory)


def test_a_file_size_limit_leaves_the_old_snapshot(saved, run_python):
    code = """
        import resource, sys
        import numpy as np
        from sona.errors import SonaStoreError
        from sona.store import load_snapshot, save_snapshot
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            save_snapshot(sys.argv[1], {"a": np.zeros(100_000)}, {"seed": 3})
        except SonaStoreError as exc:
            assert "File too large" in str(exc), exc
        else:
            sys.exit("saved")
        assert load_snapshot(sys.argv[1])[1] == {"seed": 2}
        save_snapshot(sys.argv[1], {"a": np.zeros(10)}, {"seed": 4})
        """
    run_python(code, saved)
    assert load_snapshot(saved)[1] == {"seed": 4}
    assert len(os.listdir(saved)) == 4


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc here")
def test_a_place_that_cannot_be_written_is_a_store_error():
    with pytest.raises(SonaStoreError, match="/proc/snapshot"):
        save_snapshot("/proc/snapshot", arrays(), {})


def test_only_the_two_newest_are_kept(path):
    for seed in range(6):
        save_snapshot(path, arrays(seed), {"seed": seed})
        assert len(os.listdir(path)) == min(2 * seed + 2, 4)
    # The same content again shares its data file with the fall-back.
    save_snapshot(path, arrays(5), {"seed": 5})
    assert len(os.listdir(path)) == 3
    assert load_snapshot(path)[1] == {"seed": 5}


def test_files_that_are_not_ours_stay(saved):
    (saved / "notes.txt").write_text("mine")
    (saved / "state-short.safetensors").write_text("mine")
    save_snapshot(saved, arrays(3), {"seed": 3})
    assert (saved / "notes.txt").exists()
    assert (saved / "state-short.safetensors").exists()


def test_writers_and_readers_in_threads_see_whole_snapshots(path):
    save_snapshot(path, arrays(0), {"seed": 0})
    errors, stop = [], threading.Event()

    def guarded(work):
        try:
            work()
        except BaseException as exc:
            errors.append(exc)
            stop.set()

    def write(base):
        for n in range(25):
            save_snapshot(path, arrays(base + n), {"seed": base + n})

    def read():
        while not stop.is_set():
            back, meta = load_snapshot(path)
            assert equal(back, arrays(meta["seed"]))

    readers = [threading.Thread(target=guarded, args=(read,)) for _ in range(2)]
    writers = [threading.Thread(target=guarded, args=(lambda base=base: write(base),)) for base in (100, 200)]
    for thread in readers + writers:
        thread.start()
    for thread in writers:
        thread.join(60)
    stop.set()
    for thread in readers:
        thread.join(60)
    assert errors == []
    assert len(os.listdir(path)) == 4


def test_a_file_system_that_cannot_lock_directories_is_written_without(path, monkeypatch):
    def refuse(fd, operation):
        raise OSError(errno.EBADF, "no locks here")

    monkeypatch.setattr(snapshot.fcntl, "flock", refuse)
    save_snapshot(path, arrays(), {"seed": 0})
    assert load_snapshot(path)[1] == {"seed": 0}
