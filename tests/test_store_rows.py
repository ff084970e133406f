"""The rows of a store, whichever database it is in: what was appended is there, only there, and as it was."""

import dataclasses
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from stores import Place, PostgresPlace, SqlitePlace, decision, feedback, trajectory

from sona.errors import SonaStoreError, SonaTypeError, SonaValueError
from sona.store import FeedbackRow, Store, TrajectoryRow
from sona.store import namespace as parts


@pytest.fixture
def store(place: Place) -> Iterator[Store]:
    with place.open() as opened:
        yield opened


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


def test_rows_come_back_as_they_were_after_a_restart(place):
    rows = [
        decision(1, source="Zoë's; DROP TABLE decisions --"),
        dataclasses.replace(decision(2), candidates=None, x=b"", proposals=b"", propensity=0.0),
        decision(2**63 - 1, time=-5.0),
    ]
    with place.open() as store:
        assert store.append(rows, [feedback(1, -0.25, source="s"), feedback(2, 1e300)], [trajectory(9, quality=None)]) == 2
    with place.open() as store:
        assert [store.decision(row.id) for row in rows] == rows
        assert store.feedback_after(0) == [(1, feedback(1, -0.25, source="s")), (2, feedback(2, 1e300))]
        assert list(store.trajectories()) == [trajectory(9, quality=None)]
        assert store.count() == 3
        assert store.integrity() == []


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
    assert (store.trajectory(1), store.trajectory(2), store.trajectory(-1)) == (trajectory(1, b"newer", 0.75), None, None)
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


def test_decisions_with_their_rewards_are_what_one_by_one_has(store):
    store.append([decision(id) for id in range(6)], [feedback(1, 0.5), feedback(2, 1.0), feedback(1, 0.25)])
    store.append([], [FeedbackRow(1, 0.75, 1.0, "liar"), FeedbackRow(3, 1.0, 1.0, "liar"), FeedbackRow(9, 1.0, 1.0, None)])
    for before in (None, 0, 1, 3, 4, 6):
        for without in ((), ("liar",), ("liar", "nobody")):
            found = store.rewarded([5, 1, 2, 3, 7, 1], before, without=without)
            assert found == {id: (store.decision(id), store.reward(id, before, without=without)) for id in (1, 2, 3, 5)}
    assert store.rewarded([]) == {}
    with pytest.raises(SonaTypeError):
        store.rewarded(["1"])
    with pytest.raises(SonaValueError):
        store.rewarded([1], -1)


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


def test_sessions_are_never_given_out_twice(place):
    with place.open() as a, place.open() as b, place.open(namespace="other") as c:
        sessions = [a.session, b.session, c.session, a.session]
    with place.open() as d:
        sessions.append(d.session)
    assert sessions[0] == sessions[3]
    assert len(set(sessions)) == 4
    assert all(0 < session < 2**23 for session in sessions)


def test_the_last_session_is_the_last(place, store):
    place.raw("UPDATE counters SET value = ?", 2**23 - 1)
    with pytest.raises(SonaStoreError, match="sessions"):
        _ = store.session


class Model(RuleBasedStateMachine):
    """A store of two namespaces against plain dicts."""

    def new_place(self):
        raise NotImplementedError

    ids = st.integers(0, 12)
    namespaces = st.sampled_from(["a", "b"])
    sources = st.sampled_from([None, "u", "v"])

    @initialize()
    def make(self):
        self.place = self.new_place()
        self.stores = {name: self.place.open(namespace=name) for name in "ab"}
        self.decisions = {"a": {}, "b": {}}
        self.feedback = {"a": [], "b": []}
        self.trajectories = {"a": {}, "b": {}}
        self.seq = {"a": 0, "b": 0}

    def teardown(self):
        for store in self.stores.values():
            assert store.integrity() == []
            store.close()

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
        self.stores[ns] = self.place.open(namespace=ns)

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


def test_a_store_does_what_its_model_does(place, tmp_path_factory, request):
    class Here(Model):
        def new_place(self):
            if place.kind == "sqlite":
                return SqlitePlace(tmp_path_factory.mktemp("model"))
            return PostgresPlace(request.getfixturevalue("postgres_server").url())

    examples = 25 if place.kind == "sqlite" else 8
    few = settings(max_examples=examples, stateful_step_count=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    run_state_machine_as_test(Here, settings=few)
