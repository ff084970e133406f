"""The store: what was appended is there, only there, and as it was; everything else is refused or reported."""

import dataclasses
import os
import re
import sqlite3
import struct
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sona.errors import (
    SonaClosedError,
    SonaCorruptError,
    SonaStoreError,
    SonaTypeError,
    SonaValueError,
    SonaVersionError,
    SonaWarning,
)
from sona.store import DecisionRow, FeedbackRow, SqliteStore, TrajectoryRow, VersionRow, bounds
from sona.store import namespace as parts
from sona.store import sqlite as sqlite_module
from sona.store.sqlite import lease, mounts, schema

GOLDEN = Path(__file__).parent / "golden"
X = struct.pack("<4f", 1.0, -2.0, 0.5, 3.25)
VERSION = VersionRow(None, 1000.0, "accept", "because", "{}", b"factors")


def decision(id: int, *, time: float | None = None, source: str | None = None, x: bytes = X, arm_set: int = 1) -> DecisionRow:
    when = 1000.0 + id if time is None else time
    return DecisionRow(id, when, x, id % 3, arm_set, struct.pack("<2i", 0, 2), 0.75, b"guard", source)


def feedback(id: int, reward: float = 1.0, *, time: float | None = None, source: str | None = None) -> FeedbackRow:
    return FeedbackRow(id, reward, 2000.0 + id if time is None else time, source)


def trajectory(id: int, payload: bytes = b"steps", quality: float | None = 0.5) -> TrajectoryRow:
    return TrajectoryRow(id, 1000.0 + id, payload, quality)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sona.db"


@pytest.fixture
def store(path: Path):
    with SqliteStore(path) as opened:
        yield opened


def raw(path: Path, sql: str, *values: object) -> list[tuple]:
    """Reach into the file past the store."""
    conn = sqlite3.connect(path, isolation_level=None)
    try:
        return conn.execute(sql, values).fetchall()
    finally:
        conn.close()


# -- rows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("id", -1, SonaValueError),
        ("id", 2**63, SonaValueError),
        ("id", 1.0, SonaTypeError),
        ("id", True, SonaTypeError),
        ("time", float("nan"), SonaValueError),
        ("time", float("inf"), SonaValueError),
        ("time", 10**400, SonaValueError),
        ("time", "now", SonaTypeError),
        ("x", b"123", SonaValueError),
        ("x", bytearray(4), SonaTypeError),
        ("x", None, SonaTypeError),
        ("arm", -1, SonaValueError),
        ("arm_set", "1", SonaTypeError),
        ("candidates", b"12345", SonaValueError),
        ("propensity", float("nan"), SonaValueError),
        ("propensity", -0.1, SonaValueError),
        ("proposals", "text", SonaTypeError),
        ("source", "", SonaValueError),
        ("source", "a\0b", SonaValueError),
        ("source", "x" * 256, SonaValueError),
        ("source", "\ud800", SonaValueError),
        ("source", 7, SonaTypeError),
    ],
)
def test_a_decision_that_could_not_be_read_back_cannot_be_made(field, value, error):
    with pytest.raises(error, match=field):
        dataclasses.replace(decision(1), **{field: value})


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), -float("inf")])
def test_a_reward_is_finite(reward):
    with pytest.raises(SonaValueError, match="finite reward"):
        FeedbackRow(1, reward, 0.0)


def test_a_trajectory_checks_itself():
    with pytest.raises(SonaValueError, match="finite quality"):
        TrajectoryRow(1, 0.0, b"", float("nan"))
    with pytest.raises(SonaTypeError, match="payload"):
        TrajectoryRow(1, 0.0, "text")  # type: ignore[arg-type]


# -- what is appended is there -------------------------------------------------------------------------------------


def test_rows_come_back_as_they_were_after_a_restart(path):
    rows = [
        decision(1, source="Zoë's; DROP TABLE decisions --"),
        dataclasses.replace(decision(2), candidates=None, x=b"", proposals=b"", propensity=0.0),
        decision(2**63 - 1, time=-5.0),
    ]
    with SqliteStore(path) as store:
        assert store.append(rows, [feedback(1, -0.25, source="s"), feedback(2, 1e300)], [trajectory(9, quality=None)]) == 2
    with SqliteStore(path) as store:
        assert [store.decision(row.id) for row in rows] == rows
        assert store.feedback_after(0) == [(1, feedback(1, -0.25, source="s")), (2, feedback(2, 1e300))]
        assert list(store.trajectories()) == [trajectory(9, quality=None)]
        assert store.count() == 3
        assert store.integrity() == []


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


def test_commits_wait_for_the_disk(store):
    with store._db.reading() as conn:
        assert conn.execute("PRAGMA synchronous").fetchone() == (2,)
        assert conn.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert conn.execute("PRAGMA secure_delete").fetchone() == (1,)
        assert conn.execute("PRAGMA auto_vacuum").fetchone() == (2,)


def test_a_decision_appended_again_stays_as_it_was(store):
    store.append([decision(1)])
    store.append([decision(1, x=b""), decision(2), decision(2, x=b"")])
    assert store.decision(1) == decision(1)
    assert store.decision(2) == decision(2)
    assert store.count() == 2


def test_the_last_reward_counts(store):
    store.append([decision(1)], [feedback(1, 0.0), feedback(1, 1.0)])
    assert store.reward(1) == 1.0
    assert store.append([], [feedback(1, 0.25, time=0.0)]) == 3
    assert store.reward(1) == 0.25
    assert store.reward(1, before=3) == 1.0
    assert store.reward(1, before=1) is None


def test_a_trajectory_is_replaced_by_a_later_one(store):
    store.append([], [], [trajectory(1, b"old", None)])
    store.append([], [], [trajectory(1, b"newer", 0.75)])
    assert list(store.trajectories()) == [trajectory(1, b"newer", 0.75)]
    assert store.integrity() == []


@pytest.mark.parametrize("id", [5, -1, 2**63, 10**30])
def test_unknown_ids_are_answered_softly(store, id):
    assert store.decision(id) is None
    assert store.reward(id) is None
    assert store.arms(id) is None
    assert store.forget(id) == 0


def test_what_is_not_an_id_is_a_type_error(store):
    for call in (store.decision, store.reward, store.arms, store.forget):
        with pytest.raises(SonaTypeError):
            call("1")
    with pytest.raises(SonaTypeError):
        store.forget_source(1)


def test_append_takes_rows_only_and_writes_none_of_a_bad_group(store):
    with pytest.raises(SonaTypeError, match="DecisionRow"):
        store.append([decision(1), feedback(2)])
    assert store.count() == 0


def test_feedback_is_read_from_any_number_on_and_numbers_are_not_reused(store):
    store.append([], [feedback(i) for i in range(10)])
    assert [seq for seq, _ in store.feedback_after(4, 3)] == [5, 6, 7]
    assert store.feedback_after(10) == []
    for i in range(10):
        store.forget(i)
    assert store.last_seq() == 10
    assert store.append([], [feedback(1)]) == 11
    with pytest.raises(SonaValueError, match="seq"):
        store.feedback_after(-1)
    with pytest.raises(SonaValueError, match="limit"):
        store.feedback_after(0, -1)


def test_decisions_are_the_newest_oldest_first_with_their_last_reward(store, monkeypatch):
    monkeypatch.setattr(parts, "CHUNK", 4)
    times = [7.0, 1.0, 1.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 2.0, 9.0]
    store.append([decision(i, time=t) for i, t in enumerate(times)], [feedback(3, 0.5), feedback(3, 0.0), feedback(1, 1.0)])
    expected = sorted(range(len(times)), key=lambda i: times[i])
    assert [row.id for row, _ in store.decisions()] == expected
    for limit in range(len(times) + 2):
        assert [row.id for row, _ in store.decisions(limit)] == (expected[-limit:] if limit else [])
    assert {row.id: reward for row, reward in store.decisions() if reward is not None} == {1: 1.0, 3: 0.0}
    with pytest.raises(SonaValueError, match="limit"):
        store.decisions(-1)
    store.append([], [], [trajectory(i) for i in range(9)])
    assert [row.id for row in store.trajectories(6)] == [3, 4, 5, 6, 7, 8]
    with pytest.raises(SonaValueError, match="limit"):
        store.trajectories(1.5)


def test_rows_may_come_and_go_while_decisions_are_read(store, monkeypatch):
    monkeypatch.setattr(parts, "CHUNK", 4)
    store.append([decision(i, time=1.0) for i in range(20)])
    seen = []
    for n, (row, _) in enumerate(store.decisions()):
        seen.append(row.id)
        if n == 1:
            store.forget(15)
            store.append([decision(100, time=2.0)])
    assert seen == [*range(15), *range(16, 20), 100]


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


def test_sessions_are_never_given_out_twice(path):
    with SqliteStore(path) as a, SqliteStore(path) as b, SqliteStore(path, namespace="other") as c:
        sessions = [a.session, b.session, c.session, a.session]
    with SqliteStore(path) as d:
        sessions.append(d.session)
    assert sessions[0] == sessions[3]
    assert len(set(sessions)) == 4
    assert all(0 < session < 2**23 for session in sessions)


def test_the_last_session_is_the_last(path, store):
    raw(path, "UPDATE counters SET value = ?", 2**23 - 1)
    with pytest.raises(SonaStoreError, match="sessions"):
        _ = store.session


# -- a model beside the real thing ---------------------------------------------------------------------------------


class Model(RuleBasedStateMachine):
    """A store of two namespaces against plain dicts."""

    ids = st.integers(0, 12)
    namespaces = st.sampled_from(["a", "b"])
    sources = st.sampled_from([None, "u", "v"])

    @initialize()
    def make(self):
        self.directory = tempfile.TemporaryDirectory()
        self.path = os.path.join(self.directory.name, "sona.db")
        self.stores = {name: SqliteStore(self.path, namespace=name) for name in "ab"}
        self.decisions = {"a": {}, "b": {}}
        self.feedback = {"a": [], "b": []}
        self.trajectories = {"a": {}, "b": {}}
        self.seq = {"a": 0, "b": 0}

    def teardown(self):
        for store in self.stores.values():
            assert store.integrity() == []
            store.close()
        self.directory.cleanup()

    @rule(
        ns=namespaces,
        made=st.lists(st.tuples(ids, sources), max_size=4),
        rewards=st.lists(st.tuples(ids, st.floats(-1, 1), sources), max_size=4),
        done=st.lists(ids, max_size=2),
    )
    def append(self, ns, made, rewards, done):
        rows = [decision(id, source=source) for id, source in made]
        outcomes = [feedback(id, reward, source=source) for id, reward, source in rewards]
        finished = [trajectory(id, b"p" * id) for id in done]
        last = self.stores[ns].append(rows, outcomes, finished)
        for row in rows:
            self.decisions[ns].setdefault(row.id, row)
        for row in outcomes:
            self.seq[ns] += 1
            self.feedback[ns].append((self.seq[ns], row))
        for row in finished:
            self.trajectories[ns][row.id] = row
        assert last == self.seq[ns]

    @rule(ns=namespaces, id=ids)
    def forget(self, ns, id):
        before = len(self.feedback[ns])
        gone = (self.decisions[ns].pop(id, None) is not None) + (self.trajectories[ns].pop(id, None) is not None)
        self.feedback[ns] = [(seq, row) for seq, row in self.feedback[ns] if row.id != id]
        assert self.stores[ns].forget(id) == gone + before - len(self.feedback[ns])

    @rule(ns=namespaces, source=st.sampled_from(["u", "v"]))
    def forget_source(self, ns, source):
        ids = {id for id, row in self.decisions[ns].items() if row.source == source}
        for table in (self.decisions[ns], self.trajectories[ns]):
            for id in ids:
                table.pop(id, None)
        self.feedback[ns] = [(seq, row) for seq, row in self.feedback[ns] if row.id not in ids and row.source != source]
        self.stores[ns].forget_source(source)

    @rule(ns=namespaces)
    def reopen(self, ns):
        self.stores[ns].close()
        self.stores[ns] = SqliteStore(self.path, namespace=ns)

    @precondition(lambda self: hasattr(self, "stores"))
    @invariant()
    def both_namespaces_agree(self):
        for ns, store in self.stores.items():
            rewards = {row.id: row.reward for _, row in self.feedback[ns]}
            expected = sorted(self.decisions[ns].values(), key=lambda row: row.time)
            assert list(store.decisions()) == [(row, rewards.get(row.id)) for row in expected]
            assert store.feedback_after(0) == self.feedback[ns]
            assert list(store.trajectories()) == [self.trajectories[ns][id] for id in sorted(self.trajectories[ns])]
            assert store.last_seq() == self.seq[ns]


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=25, stateful_step_count=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])


# -- names, paths, foreign and other versions' files ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "../up", "a/b", "nul\0", ".hidden", "-x", "é", "ＣＯＮ", "a" * 65, "a b", "a\n", "a';--"])
def test_names_come_from_an_allow_list(path, store, name):
    with pytest.raises(SonaValueError, match="namespace"):
        SqliteStore(path, namespace=name)
    with pytest.raises(SonaValueError, match="state name"):
        store.put_state(name, b"", 0)


def test_namespaces_share_the_file_and_nothing_else(path):
    with SqliteStore(path, namespace="a") as a, SqliteStore(path, namespace="b") as b:
        a.append([decision(1, source="s")], [feedback(1, source="s")], [trajectory(1)])
        a.put_state("adapter", b"a", 1)
        a.put_arms(["x"], b"v", b"c")
        assert (b.count(), b.last_seq(), b.reward(1), b.decision(1)) == (0, 0, None, None)
        assert (b.get_state("adapter"), b.latest_arms(), b.arms(1)) == (None, None, None)
        assert (list(b.decisions()), list(b.trajectories()), b.feedback_after(0)) == ([], [], [])
        assert b.forget(1) == b.forget_source("s") == 0
        b.put_state("adapter", b"b", 5)
        b.prune()
        assert a.decision(1) is not None
        assert a.get_state("adapter") == (b"a", 1)
        assert b.put_arms(["y"], b"", b"") == 1
        assert b.append([], [feedback(1)]) == 1


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


# -- vectors beside a state ----------------------------------------------------------------------------------------


def test_vectors_come_and_go_with_their_state(path):
    with SqliteStore(path) as store:
        store.put_state("graph", b"1", 0, vectors=[(7, b"seven"), (2, b"two")])
        store.put_state("other", b"1", 0, vectors=[(2, b"zwei")])
        store.put_state("graph", b"2", 0, vectors=[(2, b"deux"), (3, b"three")], drop=[7, 99])
        store.put_state("graph", b"3", 0)
        bytes_now = store.bytes()
    with SqliteStore(path) as store:
        assert store.get_state("graph") == (b"3", 0)
        assert list(store.vectors_of("graph")) == [(2, b"deux"), (3, b"three")]
        assert list(store.vectors_of("other")) == [(2, b"zwei")]
        assert list(store.vectors_of("none")) == []
        assert store.bytes() == bytes_now
        assert store.integrity() == []


def test_more_vectors_than_are_read_at_a_time(store):
    rows = [(id, b"%d" % id) for id in range(0, 5000, 2)]
    store.put_state("graph", b"1", 0, vectors=reversed(rows))
    assert list(store.vectors_of("graph")) == rows


def test_a_state_that_cannot_be_written_leaves_its_vectors(path, store):
    store.put_state("graph", b"1", 0, vectors=[(1, b"one")])

    def fails():
        yield 1, b"uno"
        raise SonaValueError("no more")

    with pytest.raises(SonaValueError, match="no more"):
        store.put_state("graph", b"2", 0, vectors=fails(), drop=[1])
    assert store.get_state("graph") == (b"1", 0)
    assert list(store.vectors_of("graph")) == [(1, b"one")]


def test_a_damaged_vector_is_left_out_and_found(path, store):
    store.put_state("graph", b"1", 0, vectors=[(1, b"one"), (2, b"two")])
    raw(path, "UPDATE vectors SET vector = x'00' WHERE id = 1")
    assert list(store.vectors_of("graph")) == [(2, b"two")]
    assert "vector 1 of 'graph': does not match its checksum" in store.integrity()


def test_vectors_that_are_dropped_are_overwritten(path, store):
    store.put_state("graph", b"1", 0, vectors=[(1, b"a very secret vector")])
    store.put_state("graph", b"1", 0, drop=[1])
    store.scrub_log()
    assert b"very secret" not in path.read_bytes()


# -- adapter state and arm sets ------------------------------------------------------------------------------------


def test_state_comes_back_after_a_restart(path):
    with SqliteStore(path) as store:
        assert store.get_state("adapter") is None
        for n in range(5):
            store.put_state("adapter", b"weights" * n, n)
            store.put_state("guard", b"", 7)
        assert store.get_state("adapter") == (b"weights" * 4, 4)
    assert raw(path, "SELECT name, generation FROM state ORDER BY 1, 2") == [("adapter", 4), ("adapter", 5), ("guard", 4), ("guard", 5)]
    with SqliteStore(path) as store:
        assert store.get_state("adapter") == (b"weights" * 4, 4)
        assert store.get_state("guard") == (b"", 7)


@pytest.mark.parametrize("damage", ["blob = x'00'", "applied_seq = 9", "sha256 = x''"])
def test_a_damaged_state_falls_back_to_the_one_before_it(path, store, damage):
    store.put_state("adapter", b"first", 1)
    store.put_state("adapter", b"second", 2)
    raw(path, f"UPDATE state SET {damage} WHERE generation = 2")
    with pytest.warns(SonaWarning, match="going back"):
        assert store.get_state("adapter") == (b"first", 1)
    assert any("generation 2" in finding for finding in store.integrity())
    # The damaged one never becomes the fall-back.
    store.put_state("adapter", b"third", 3)
    raw(path, "UPDATE state SET blob = x'00' WHERE generation = 3")
    with pytest.warns(SonaWarning, match="going back"):
        assert store.get_state("adapter") == (b"first", 1)
    raw(path, "UPDATE state SET blob = x'00'")
    with pytest.raises(SonaCorruptError, match="no kept state 'adapter'"):
        store.get_state("adapter")


def test_put_state_checks_its_arguments(store):
    for bad in ("text", bytearray(b"x"), None):
        with pytest.raises(SonaTypeError, match="bytes"):
            store.put_state("adapter", bad, 0)
    for bad in (-1, 0.5, 2**63):
        with pytest.raises(SonaValueError, match="applied_seq"):
            store.put_state("adapter", b"", bad)
    assert store.get_state("adapter") is None


def test_the_same_arms_have_the_same_version(store):
    assert store.latest_arms() is None
    a, b = (["x", "y"], b"vectors", b"costs"), (["x"], b"vectors", b"costs")
    assert [store.put_arms(*a), store.put_arms(*b), store.put_arms(*a), store.put_arms(*b), store.put_arms(*a)] == [1, 2, 1, 2, 1]
    assert store.latest_arms() == (1, ("x", "y"), b"vectors", b"costs")
    assert store.arms(2) == (("x",), b"vectors", b"costs")
    # Moving a byte from one part to the next is another content.
    assert store.put_arms(["x"], b"vectorsc", b"osts") == 3


def test_put_arms_checks_its_arguments(store):
    for bad in ("xy", [1]):
        with pytest.raises(SonaTypeError, match="arm names"):
            store.put_arms(bad, b"", b"")
    with pytest.raises(SonaTypeError, match="got str and bytes"):
        store.put_arms(["x"], "v", b"")


def test_damaged_arms_are_not_handed_out(path, store):
    store.put_arms(["x"], b"vectors", b"")
    raw(path, "UPDATE arms SET vectors = x'00'")
    with pytest.raises(SonaCorruptError, match="arm set 1"):
        store.arms(1)
    assert any("arm set 1" in finding for finding in store.integrity())


# -- the lease -----------------------------------------------------------------------------------------------------


def test_one_store_holds_the_lease_of_a_namespace(path, tmp_path):
    with SqliteStore(path) as a, SqliteStore(path) as b, SqliteStore(path, namespace="other") as other:
        assert (a.lease, a.try_lease(), a.try_lease(), a.lease) == (False, True, True, True)
        assert (b.try_lease(), b.lease) == (False, False)
        assert other.try_lease()
        b.append([decision(1)], [feedback(1)])
        with pytest.raises(SonaStoreError, match="holds the learning lease of namespace 'default'"):
            b.put_state("adapter", b"mine", 1)
        a.put_state("adapter", b"yours", 1)
        a.release_lease()
        assert b.try_lease()
        b.close()
        assert a.try_lease()
        (tmp_path / "link.db").symlink_to(path)
        with SqliteStore(tmp_path / "link.db") as c:
            assert not c.try_lease()
    assert not a.lease


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


# -- forgetting and bounds -----------------------------------------------------------------------------------------


def secret(id: int) -> bytes:
    return b"secret%06d" % id


def on_disk(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in path.parent.iterdir() if file.is_file())


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


def test_forget_source_takes_what_the_source_asked_and_what_it_reported(store):
    store.append(
        [decision(1, source="u"), decision(2, source="v"), decision(3)],
        [feedback(1, 1.0, source="v"), feedback(2, 0.5, source="v"), feedback(2, 0.0, source="u"), feedback(3, 1.0)],
        [trajectory(1), trajectory(2)],
    )
    assert store.forget_source("u") == 4
    assert [row.id for row, _ in store.decisions()] == [2, 3]
    assert (store.reward(1), store.reward(2), store.reward(3)) == (None, 0.5, 1.0)
    assert [row.id for row in store.trajectories()] == [2]


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


def test_max_bytes_bounds_the_file_and_the_newest_stay(path):
    x = bytes(4096)
    with SqliteStore(path, max_bytes=1 << 20) as store:
        for group in range(60):
            ids = range(group * 20, group * 20 + 20)
            store.append([decision(id, x=x) for id in ids], [feedback(id) for id in ids], [trajectory(id, x[:100]) for id in ids])
            assert store.bytes() <= 1 << 20
        assert path.stat().st_size <= 1.2 * (1 << 20)
        kept = [row.id for row, _ in store.decisions()]
        assert kept == list(range(1200 - len(kept), 1200))
        assert len(kept) > 100
        assert store.pruned_decisions == 1200 - len(kept)
        assert {row.id for _, row in store.feedback_after(0, 2000)} == set(kept)
        assert store.last_seq() == 1200
        assert store.integrity() == []


def test_max_bytes_holds_without_decisions_too(path):
    with SqliteStore(path, max_bytes=1 << 20) as store:
        for n in range(300):
            store.append([], [], [trajectory(n, bytes(8000))])
        assert store.bytes() <= 1 << 20
        kept = [row.id for row in store.trajectories()]
        assert kept == list(range(300 - len(kept), 300))
        assert store.forget(299) == 1
    with SqliteStore(path, max_bytes=1 << 20, namespace="feedback-only") as store:
        for _ in range(30):
            store.append([], [feedback(1)] * 1000)
        assert store.bytes() <= 1 << 20
        assert store.last_seq() == 30_000


def test_a_namespace_is_pruned_for_its_own_size_only(path):
    with SqliteStore(path, namespace="big") as big, SqliteStore(path, namespace="small", max_bytes=1 << 20) as small:
        big.append([decision(id, x=bytes(4096)) for id in range(1000)])
        small.append([decision(id) for id in range(50)])
        assert small.prune().decisions == 0
        assert (big.count(), small.count()) == (1000, 50)
        assert big.bytes() > 50 * small.bytes()
        small.append([decision(id, x=bytes(4096)) for id in range(100, 500)])
        small.prune()
        assert big.count() == 1000
        assert small.count() < 400
        assert small.bytes() <= 1 << 20


def test_retention_deletes_what_is_older(path):
    now = [100 * 86400.0]
    with SqliteStore(path, retention_days=10, clock=lambda: now[0]) as store:
        days = [89.0, 91.0, 95.0, 99.9]
        store.append(
            [decision(n, time=day * 86400) for n, day in enumerate(days)],
            [feedback(n, time=day * 86400) for n, day in enumerate(days)] + [feedback(77, time=0.0), feedback(77, time=99 * 86400)],
            [TrajectoryRow(n + 50, day * 86400, b"", None) for n, day in enumerate(days)],
        )
        assert [row.id for row, _ in store.decisions()] == [1, 2, 3]
        assert [row.id for row in store.trajectories()] == [51, 52, 53]
        assert [row.id for _, row in store.feedback_after(0)] == [1, 2, 3, 77]
        now[0] = 103 * 86400.0
        report = store.prune()
        assert (report.decisions, report.feedback, report.trajectories) == (1, 1, 1)
        assert report.bytes_after <= report.bytes_before
        # A clock that goes back deletes nothing and does not stop the looking.
        now[0] = 50 * 86400.0
        store.append([decision(9, time=now[0])])
        assert store.count() == 3
        now[0] = 106 * 86400.0
        store.append([])
        assert [row.id for row, _ in store.decisions()] == [3]


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


def test_arm_sets_without_a_decision_go_after_a_day_and_their_numbers_do_not_come_back(path):
    now = [0.0]
    with SqliteStore(path, clock=lambda: now[0]) as store:
        for name in "abcd":
            store.put_arms([name], b"", b"")
        store.append([decision(1, arm_set=2)])
        assert store.prune().arm_sets == 0
        now[0] = 2 * 86400.0
        assert store.prune().arm_sets == 2
        assert [store.arms(version) is not None for version in (1, 2, 3, 4)] == [False, True, False, True]
        assert store.put_arms(["a"], b"", b"") == 5
        assert store.integrity() == []


def test_pruning_that_fails_does_not_fail_the_append(path, monkeypatch):
    with SqliteStore(path, retention_days=1, clock=lambda: 1e9) as store:
        with monkeypatch.context() as patched:
            patched.setattr(bounds.pruning, "drop_before", lambda *_: (_ for _ in ()).throw(sqlite3.OperationalError("disk I/O error")))
            assert store.append([decision(1)], [feedback(1)]) == 1
        assert store.prune_failures == 1
        assert store.count() == 1
        store.append([decision(2)])
        assert store.count() == 0
        assert store.prune_failures == 1


# -- integrity -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        ("UPDATE decisions SET x = x'010203'", "decisions, id 1"),
        ("UPDATE feedback SET reward = 9e999", "feedback, id 1"),
        ("UPDATE trajectories SET payload = 'text'", "trajectories, id 1"),
        ("UPDATE namespaces SET last_seq = 0", "numbers up to 0, got 1"),
        ("UPDATE namespaces SET bytes = 1", "the books say 1"),
        ("PRAGMA application_id = 5", "another SQLite database"),
        ("PRAGMA user_version = 9", "got 9"),
        ("DROP TABLE trajectories", "unreadable: .*trajectories"),
    ],
)
def test_integrity_names_what_is_wrong(path, store, damage, finding):
    store.append([decision(1)], [feedback(1)], [trajectory(1)])
    assert store.integrity() == []
    raw(path, damage)
    assert re.search(finding, "\n".join(store.integrity()))


def test_a_damaged_row_is_not_handed_out(path, store):
    store.append([decision(1)])
    raw(path, "UPDATE decisions SET x = x'010203'")
    with pytest.raises(SonaCorruptError, match="damaged"):
        store.decision(1)


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


# -- failing disks and busy files ----------------------------------------------------------------------------------


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
        from test_store import *
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


def test_an_interrupted_transaction_leaves_nothing(store):
    store.append([decision(1)])

    def delete_and_stop():
        with store._db.writing() as conn:
            conn.execute("DELETE FROM decisions")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        delete_and_stop()
    assert store.count() == 1
    store.append([decision(2)])
    assert store.count() == 2


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


# -- threads, processes, closing -----------------------------------------------------------------------------------


def in_threads(*calls) -> None:
    errors = []

    def guarded(call):
        try:
            call()
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=guarded, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert errors == []


def test_threads_share_a_store(store):
    def append(base):
        for n in range(20):
            store.append([decision(base + n)], [feedback(base + n)])
            assert store.decision(base + n) is not None

    in_threads(*(lambda base=base: append(base) for base in (0, 100, 200, 300)))
    assert store.count() == store.last_seq() == 80
    assert [seq for seq, _ in store.feedback_after(0)] == list(range(1, 81))


@pytest.mark.parametrize("attempt", range(5))
def test_many_openings_of_a_new_file_at_once_all_succeed(path, attempt):
    sessions = []

    def open_and_append():
        with SqliteStore(path, namespace=f"n{threading.get_ident() % 3}") as store:
            sessions.append(store.session)
            store.append([decision(store.session)])

    in_threads(*[open_and_append] * 8)
    assert len(set(sessions)) == 8
    assert raw(path, "SELECT count(*) FROM decisions") == [(8,)]


def test_a_follower_of_feedback_misses_nothing(path):
    seen: list[int] = []
    with SqliteStore(path) as follower:

        def write(base):
            with SqliteStore(path) as store:
                for n in range(30):
                    store.append([], [feedback(base + n)])

        def follow():
            seq = 0
            while len(seen) < 60:
                for seq, row in follower.feedback_after(seq, 7):  # noqa: B007, B020
                    seen.append(row.id)

        in_threads(lambda: write(0), lambda: write(100), follow)
    assert sorted(seen) == [*range(30), *range(100, 130)]


def test_after_close_everything_is_refused_and_close_does_nothing(path):
    store = SqliteStore(path)
    store.append([decision(id) for id in range(600)])
    rows = store.decisions()
    next(rows)
    assert store.try_lease()
    in_threads(store.close, store.close)
    store.close()
    assert store.closed
    assert not store.lease
    assert "closed" in repr(store)
    with pytest.raises(SonaClosedError):
        list(rows)
    calls = [
        lambda: store.append([]),
        lambda: store.decision(1),
        lambda: list(store.decisions(1)),
        lambda: store.reward(1),
        lambda: store.feedback_after(0),
        lambda: store.last_seq(),
        lambda: store.put_state("a", b"", 0),
        lambda: store.get_state("a"),
        lambda: store.put_arms(["x"], b"", b""),
        lambda: store.arms(1),
        lambda: store.latest_arms(),
        lambda: list(store.trajectories()),
        lambda: store.forget(1),
        lambda: store.forget_source("s"),
        lambda: store.count(),
        lambda: store.bytes(),
        lambda: store.file_bytes(),
        lambda: store.prune(),
        lambda: store.integrity(),
        lambda: store.try_lease(),
        lambda: store.release_lease(),
        lambda: store.session,
    ]
    for call in calls:
        with pytest.raises(SonaClosedError, match=r"sona\.db: the store is closed"):
            call()


def test_forked_children_leave_the_parents_store_alone_and_may_open_their_own(path, run_python):
    done = run_python(
        """
        import gc, os, sys, threading, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads is what is tested
        from test_store import *
        store = SqliteStore(sys.argv[1])
        assert store.try_lease()
        stop = threading.Event()
        def work():  # threads are inside of SQLite, opening and closing too, whenever this one forks
            n = 1000 * threading.get_ident()
            while not stop.is_set():
                n += 1
                store.append([decision(n % 2**62)])
                SqliteStore(sys.argv[1], namespace="other").close()
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for n in range(8):
            child = os.fork()
            if child == 0:
                try:
                    store.append([decision(1)])
                except SonaClosedError as exc:
                    assert "forked" in str(exc) and not store.lease
                else:
                    os._exit(1)
                with SqliteStore(sys.argv[1], namespace="children") as mine:
                    mine.append([decision(n)])
                with SqliteStore(sys.argv[1]) as mine:
                    assert not mine.try_lease()
                store.close()
                del store
                gc.collect()
                sys.exit(0)  # with all that the interpreter does at its end
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        for thread in threads:
            thread.join()
        assert os.path.exists(sys.argv[1] + "-wal")
        assert store.lease
        assert store.count() > 0 and store.decision(1) is None
        with SqliteStore(sys.argv[1], namespace="children") as children:
            print([row.id for row, _ in children.decisions()], store.integrity())
        store.close()
        """,
        path,
    )
    assert done.stdout.split("\n")[0] == f"{list(range(8))} []"


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
