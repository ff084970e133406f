"""What is particular to the store in a SQLite file: paths, versions of the file, its log, disks that fail, and its lease file."""

import os
import re
import sqlite3
from pathlib import Path

import pytest
from stores import VERSION, decision, feedback, raw, trajectory

from sona.errors import SonaCorruptError, SonaStoreError, SonaTypeError, SonaValueError, SonaVersionError, SonaWarning
from sona.store import SqliteStore, open_store
from sona.store import sqlite as sqlite_module
from sona.store.open import namespaces_of
from sona.store.sqlite import lease, mounts, schema

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sona.db"


@pytest.fixture
def store(path: Path):
    with SqliteStore(path) as opened:
        yield opened


def secret(id: int) -> bytes:
    return b"secret%06d" % id


def on_disk(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in path.parent.iterdir() if file.is_file())


def test_a_copy_of_the_files_made_after_append_holds_the_rows(path, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    with SqliteStore(path) as store:
        store.append([decision(1)], [feedback(1)])
        for name in ("sona.db", "sona.db-wal"):
            (copy / name).write_bytes((tmp_path / name).read_bytes())
    with SqliteStore(copy / "sona.db") as again:
        assert again.decision(1) == decision(1)
        assert again.reward(1) == 1.0


def test_a_url_of_something_else_is_no_path_and_not_repeated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for url, said in (
        ("mysql://u:secret@h/x", "mysql:"),
        ("PostgreSQL://u:secret@h/x", "PostgreSQL:"),
        ("postgresql+psycopg://u:secret@h/x", r"postgresql\+psycopg:"),
        ("postgres:u:secret@h/x", "postgres:"),
    ):
        for look in (open_store, namespaces_of):
            with pytest.raises(SonaValueError, match=f"begins with postgresql://, got one that begins with {said}$"):
                look(url)
    assert os.listdir(tmp_path) == []
    with open_store("a:b.db") as store:
        assert store.count() == 0


def test_commits_wait_for_the_disk(store):
    with store._db.reading() as conn:
        assert conn.execute("PRAGMA synchronous").fetchone() == (2,)
        assert conn.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert conn.execute("PRAGMA secure_delete").fetchone() == (1,)
        assert conn.execute("PRAGMA auto_vacuum").fetchone() == (2,)


def test_reading_rewards_does_not_slow_down_with_the_log(store):
    # Each step is about 100 instructions of SQLite's machine: a walk over all feedback would need thousands.
    store.append([decision(i) for i in range(2000)], [feedback(i) for i in range(2000)])
    steps = []
    with store._db.reading() as conn:
        conn.set_progress_handler(lambda: steps.append(1) and None, 100)
    store.reward(0)
    assert len(steps) < 20
    list(store.decisions(10))
    assert len(steps) < 60


@pytest.mark.parametrize("bad", [":memory:", "", "file:sona.db", "a\0b"])
def test_only_a_file_is_a_path(bad):
    with pytest.raises(SonaValueError, match="path of a file"):
        SqliteStore(bad)


def test_paths_of_another_kind_are_refused(tmp_path):
    for bad in (7, None, b"sona.db"):
        with pytest.raises(SonaTypeError, match="path"):
            SqliteStore(bad)
    with pytest.raises(SonaStoreError, match="directory"):
        SqliteStore(tmp_path)
    with pytest.raises(SonaStoreError, match="missing does not exist"):
        SqliteStore(tmp_path / "missing" / "sona.db")


@pytest.mark.parametrize(
    "option",
    [
        {"max_bytes": 1000},
        {"max_bytes": 2.0e6},
        {"retention_days": 0},
        {"retention_days": float("nan")},
        {"retention_days": float("inf")},
        {"busy_timeout_ms": -1},
        {"busy_timeout_ms": 0.5},
    ],
)
def test_options_are_checked_before_a_file_is_made(path, option):
    with pytest.raises(SonaValueError, match=next(iter(option))):
        SqliteStore(path, **option)
    assert not path.exists()
    with pytest.raises(TypeError):
        SqliteStore(path, max_byte=1)


def test_a_file_that_is_not_a_database_is_refused_and_kept(path):
    path.write_bytes(b"precious text " * 100)
    with pytest.raises(SonaCorruptError, match=r"sona\.db"):
        SqliteStore(path)
    assert path.read_bytes() == b"precious text " * 100


@pytest.mark.parametrize("sql", ["CREATE TABLE theirs (a)", "PRAGMA application_id = 7", "PRAGMA user_version = 3"])
def test_somebody_elses_database_is_refused_and_kept(path, sql):
    raw(path, sql)
    before = path.read_bytes()
    with pytest.raises(SonaCorruptError, match="another SQLite database"):
        SqliteStore(path)
    assert path.read_bytes() == before


def test_an_empty_file_becomes_a_store(path):
    path.touch()
    with SqliteStore(path) as store:
        assert store.integrity() == []


def test_a_newer_schema_is_refused_with_both_versions_named(path):
    SqliteStore(path).close()
    raw(path, "PRAGMA user_version = 7")
    before = path.read_bytes()
    with pytest.raises(SonaVersionError, match=r"version 3 or older .* got 7"):
        SqliteStore(path)
    assert path.read_bytes() == before


def test_an_older_schema_is_migrated_and_its_rows_stay(path, monkeypatch):
    with SqliteStore(path) as store:
        store.append([decision(1)], [feedback(1)])
    step = ("ALTER TABLE decisions ADD COLUMN region TEXT", "UPDATE decisions SET region = 'eu'")
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, step))
    with SqliteStore(path) as store:
        assert store.decision(1) == decision(1)
        assert store.reward(1) == 1.0
        assert store.integrity() == []
    assert raw(path, "SELECT region FROM decisions") == [("eu",)]
    assert raw(path, "PRAGMA user_version") == [(4,)]


def test_a_migration_that_fails_changes_nothing(path, monkeypatch):
    with SqliteStore(path) as store:
        store.append([decision(1)])
    with monkeypatch.context() as patched:
        patched.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, ("DELETE FROM decisions", "NOT SQL")))
        with pytest.raises(SonaStoreError, match="syntax"):
            SqliteStore(path)
    with SqliteStore(path) as store:
        assert store.decision(1) == decision(1)


def test_an_open_store_does_not_write_into_a_file_that_a_newer_sona_migrated(path, store):
    raw(path, "PRAGMA user_version = 4")
    with pytest.raises(SonaVersionError, match="version 3, got 4"):
        store.append([decision(1)])
    assert store.integrity() != []


def test_a_file_of_schema_version_1_is_read(path):
    conn = sqlite3.connect(path)
    conn.executescript((GOLDEN / "store-v1.sql").read_text())
    conn.close()
    with SqliteStore(path) as store:
        assert [(row.id, reward) for row, reward in store.decisions()] == [(1, 0.5), (2, None)]
        assert store.decision(1) == decision(1, source="s")
        assert list(store.trajectories()) == [trajectory(1)]
        assert store.get_state("adapter") == (b"weights", 1)
        assert store.latest_arms() == (1, ("a", "b"), b"vectors", b"costs")
        assert store.session == 2
        assert store.integrity() == []
        assert (store.versions("adapter"), store.published("adapter")) == ([], None)
        assert store.put_version("adapter", VERSION) == 1


def test_a_file_of_schema_version_2_is_read(path):
    conn = sqlite3.connect(path)
    conn.executescript((GOLDEN / "store-v2.sql").read_text())
    conn.close()
    with SqliteStore(path) as store:
        assert store.decision(1) == decision(1, source="s")
        assert store.get_state("adapter") == (b"weights", 1)
        assert store.versions("adapter") == [(1, VERSION), (2, VERSION)]
        assert store.published("adapter") == 2
        assert store.integrity() == []


def test_a_file_of_schema_version_3_is_read(path):
    conn = sqlite3.connect(path)
    conn.executescript((GOLDEN / "store-v3.sql").read_text())
    conn.close()
    with SqliteStore(path) as store:
        assert store.decision(1) == decision(1, source="s")
        assert store.get_state("graph") == (b"nodes", 0)
        assert list(store.vectors_of("graph")) == [(2, b"two"), (5, b"five")]
        assert store.integrity() == []


def test_vectors_that_are_dropped_are_overwritten(path, store):
    store.put_state("graph", b"1", 0, vectors=[(1, b"a very secret vector")])
    store.put_state("graph", b"1", 0, drop=[1])
    store.scrub_log()
    assert b"very secret" not in path.read_bytes()


def test_two_names_of_a_file_share_its_lease(path, tmp_path):
    (tmp_path / "link.db").symlink_to(path)
    with SqliteStore(path) as a, SqliteStore(tmp_path / "link.db") as b:
        assert a.try_lease()
        assert not b.try_lease()


def test_a_link_in_the_place_of_the_lease_is_not_followed(path, tmp_path):
    """Whoever may write to the directory cannot have a file elsewhere made or kept locked by it."""
    victim = tmp_path / "elsewhere"
    with SqliteStore(path) as store:
        Path(f"{path}.lease-default").symlink_to(victim)
        with pytest.raises(SonaStoreError, match="cannot open the lease file"):
            store.try_lease()
        assert not victim.exists()
        Path(f"{path}.lease-default").unlink()
        assert store.try_lease()


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        ("UPDATE trajectories SET payload = 'text'", "trajectories, id 1"),
        ("PRAGMA application_id = 5", "another SQLite database"),
        ("PRAGMA user_version = 9", "got 9"),
    ],
)
def test_integrity_names_what_is_wrong_with_a_file(path, store, damage, finding):
    store.append([decision(1)], [feedback(1)], [trajectory(1)])
    raw(path, damage)
    assert re.search(finding, "\n".join(store.integrity()))


def test_a_lease_file_that_was_removed_does_not_make_two_holders(path, tmp_path):
    with SqliteStore(path) as a:
        assert a.try_lease()
        a.release_lease()
        (tmp_path / "sona.db.lease-default").unlink()
        assert a.try_lease()
        with SqliteStore(path) as b:
            assert not b.try_lease()


def test_a_lease_file_that_is_removed_while_it_is_being_locked_does_not_make_two_holders(path, tmp_path, monkeypatch):
    real, file = lease.fcntl.flock, tmp_path / "sona.db.lease-default"
    with SqliteStore(path) as a, SqliteStore(path) as b:

        def meanwhile(fd, operation):
            monkeypatch.setattr(lease.fcntl, "flock", real)
            file.unlink()
            assert b.try_lease()
            real(fd, operation)

        monkeypatch.setattr(lease.fcntl, "flock", meanwhile)
        assert not a.try_lease()
        assert b.lease


def test_a_lease_file_that_cannot_be_opened_is_a_store_error(path, tmp_path):
    (tmp_path / "sona.db.lease-default").mkdir()
    with SqliteStore(path) as store, pytest.raises(SonaStoreError, match="lease-default"):
        store.try_lease()


def test_what_is_forgotten_is_not_in_the_files_any_more(path):
    # Enough rows, of many sizes and in an order that splits pages, for a copy to be left behind somewhere.
    ids = [(n * 7919) % 400 for n in range(400)]
    with SqliteStore(path) as store:
        for id in ids:
            store.append(
                [decision(id, source=secret(id).decode(), x=secret(id) * (1 + id % 60 * 4))],
                [feedback(id, source=secret(id).decode())],
                [trajectory(id, secret(id) * (id % 50))],
            )
        assert secret(7) in on_disk(path)
        assert store.forget(7) == 3
        assert secret(7) not in on_disk(path)
        for id in ids[:200]:
            assert id == 7 or store.forget_source(secret(id).decode()) == 3
        left = on_disk(path)
        assert [id for id in ids[:200] if secret(id) in left] == []
        assert store.count() == len(ids) - len({*ids[:200], 7})
        assert store.integrity() == []


def test_forget_says_when_a_reader_keeps_the_log(path):
    with SqliteStore(path, busy_timeout_ms=20) as store:
        store.append([decision(1, x=secret(1))])
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM decisions").fetchall()
        with pytest.raises(SonaStoreError, match=r"reader|more than 20 ms"):
            store.forget(1)
        assert store.decision(1) is None
        reader.close()
        assert store.forget(1) == 0
        assert secret(1) not in on_disk(path)


def test_pruning_gives_space_back_to_the_file_system(path):
    now = [0.0]
    with SqliteStore(path, retention_days=1, clock=lambda: now[0]) as store:
        store.append([decision(id, time=0.0, x=bytes(4096)) for id in range(500)])
        raw(path, "PRAGMA wal_checkpoint(TRUNCATE)")
        full = store.file_bytes()
        assert full > 500 * 4096
        now[0] = 2 * 86400.0
        assert store.prune().decisions == 500
        raw(path, "PRAGMA wal_checkpoint(TRUNCATE)")
        assert store.file_bytes() < full / 4
        assert store.integrity() == []


def test_a_torn_page_is_found_and_named(path):
    with SqliteStore(path) as store:
        store.append([decision(id, x=bytes(400)) for id in range(200)])
    content = bytearray(path.read_bytes())
    for page in range(4096 * 4, len(content), 4096):
        content[page : page + 64] = b"\xff" * 64
    path.write_bytes(content)
    try:
        with SqliteStore(path) as store:
            assert store.integrity() != []
            with pytest.raises(SonaCorruptError):
                list(store.decisions())
    except SonaCorruptError:
        pass  # as good: refused when opened


def test_a_full_disk_writes_nothing_and_the_store_goes_on(store):
    store.append([decision(1)])
    with store._db.reading() as conn:
        pages = conn.execute("PRAGMA page_count").fetchone()[0]
        conn.execute(f"PRAGMA max_page_count = {pages + 5}")
    with pytest.raises(SonaStoreError, match=r"sona\.db.* full"):
        store.append([decision(id, x=bytes(4096)) for id in range(2, 50)], [feedback(1)])
    assert (store.count(), store.last_seq()) == (1, 0)
    store.append([decision(2)], [feedback(2)])
    with store._db.reading() as conn:
        conn.execute("PRAGMA max_page_count = 1000000")
    store.append([decision(id, x=bytes(4096)) for id in range(3, 50)])
    assert store.count() == 49
    assert store.integrity() == []


def test_a_file_size_limit_writes_nothing_and_the_store_goes_on(path, run_python):
    run_python(
        """
        import resource, sys
        import pytest
        from stores import decision, feedback
        from sona.errors import SonaStoreError
        from sona.store import SqliteStore
        with SqliteStore(sys.argv[1]) as store:
            store.append([decision(1)])
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
            with pytest.raises(SonaStoreError, match="sona.db"):
                store.append([decision(id, x=bytes(4096)) for id in range(2, 100)], [feedback(1)])
            assert (store.count(), store.last_seq()) == (1, 0)
            store.append([decision(2)])
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            store.append([decision(id, x=bytes(4096)) for id in range(3, 100)])
            assert store.count() == 99 and store.integrity() == []
        """,
        path,
    )


def test_a_read_only_connection_is_a_store_error(store):
    store.append([decision(1)])
    with store._db.reading() as conn:
        conn.execute("PRAGMA query_only = ON")
    for write in (lambda: store.append([decision(2)]), lambda: store.forget(1), lambda: store.put_state("a", b"", 0)):
        with pytest.raises(SonaStoreError, match=r"sona\.db.*readonly"):
            write()
    assert store.decision(1) == decision(1)
    with store._db.reading() as conn:
        conn.execute("PRAGMA query_only = OFF")
    store.append([decision(2)])


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc here")
def test_a_place_that_cannot_be_written_is_a_store_error():
    with pytest.raises(SonaStoreError, match=r"/proc/sona\.db"):
        SqliteStore("/proc/sona.db")


def test_a_file_that_stays_locked_is_a_store_error(path):
    with SqliteStore(path, busy_timeout_ms=30) as store:
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(SonaStoreError, match=r"sona\.db.* more than 30 ms"):
            store.append([decision(1)])
        assert store.decision(1) is None  # readers do not wait for writers
        holder.execute("ROLLBACK")
        holder.close()
        store.append([decision(1)])
        assert store.count() == 1


def test_opening_a_file_that_stays_locked_is_a_store_error(path):
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(SonaStoreError, match="more than 30 ms"):
        SqliteStore(path, busy_timeout_ms=30)
    holder.close()
    SqliteStore(path).close()


@pytest.mark.parametrize(
    ("table", "path", "expected"),
    [
        ("/dev/vda / ext4 rw 0 0\nserver:/x /home nfs4 rw 0 0\n", "/home/u/sona.db", "nfs4"),
        ("/dev/vda / ext4 rw 0 0\nserver:/x /home nfs4 rw 0 0\n", "/homes/u/sona.db", None),
        ("server:/ / nfs rw 0 0\n/dev/vda /tmp ext4 rw 0 0\n", "/tmp/sona.db", None),
        ("/dev/vda / ext4 rw 0 0\nx /mnt/my\\040share cifs rw 0 0\n", "/mnt/my share/sona.db", "cifs"),
        ("/dev/vda / ext4 rw 0 0\nx /a nfs rw 0 0\n/dev/vdb /a xfs rw 0 0\n", "/a/sona.db", None),
    ],
)
def test_network_file_systems_are_known_by_the_mount_table(tmp_path, table, path, expected):
    (tmp_path / "mounts").write_text(table)
    assert mounts.network_filesystem(path, str(tmp_path / "mounts")) == expected
    assert mounts.network_filesystem(path, str(tmp_path / "absent")) is None


def test_a_network_file_system_is_warned_of(path, monkeypatch):
    monkeypatch.setattr(sqlite_module, "network_filesystem", lambda path: "nfs4")
    with pytest.warns(SonaWarning, match="nfs4"):
        SqliteStore(path).close()


def test_a_fork_goes_on_when_a_thread_does_not_come_out_of_sqlite(path, run_python):
    run_python(
        """
        import os, sys, threading, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        from sona.store import SqliteStore
        from sona.store.sqlite import connection
        connection.FORK_PATIENCE = 0.05
        store = SqliteStore(sys.argv[1])
        inside, done = threading.Event(), threading.Event()
        def stay():
            with store._db.reading():
                inside.set()
                done.wait(60)
        thread = threading.Thread(target=stay)
        thread.start()
        inside.wait(60)
        if os.fork() == 0:
            os._exit(not store.closed)
        assert os.wait()[1] == 0
        done.set()
        thread.join()
        assert store.count() == 0
        """,
        path,
    )


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc here")
def test_a_forked_child_does_not_even_close_the_parents_connection(path, run_python):
    run_python(
        """
        import gc, os, sys
        from sona.store import SqliteStore
        store = SqliteStore(sys.argv[1])
        store.count()
        if os.fork() == 0:
            store.close()
            del store
            gc.collect()
            still_open = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
            os._exit(sys.argv[1] not in still_open)
        assert os.wait()[1] == 0
        """,
        path,
    )


def test_a_lease_held_while_forking_ends_with_its_holder(path, run_python):
    run_python(
        """
        import ctypes, os, sys
        from sona.store import SqliteStore
        store = SqliteStore(sys.argv[1])
        assert store.try_lease()
        ready, go = os.pipe()
        if ctypes.PyDLL(None).fork() == 0:  # a fork that Python's hooks do not see
            os.read(ready, 1)  # outlives the release below
            os._exit(0)
        store.close()
        with SqliteStore(sys.argv[1]) as other:
            assert other.try_lease()
        os.write(go, b"x")
        os.wait()
        """,
        path,
    )
