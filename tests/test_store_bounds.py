"""What a store of either kind forgets: what its user names, and what is too old or too much."""

from collections.abc import Iterator

import pytest
from stores import Place, decision, feedback, trajectory

from sona.errors import SonaStoreError
from sona.store import Store, TrajectoryRow, bounds


@pytest.fixture
def store(place: Place) -> Iterator[Store]:
    with place.open() as opened:
        yield opened


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


def test_max_bytes_holds_without_decisions_too(place):
    with place.open(max_bytes=1 << 20) as store:
        for n in range(300):
            store.append([], [], [trajectory(n, bytes(8000))])
        assert store.bytes() <= 1 << 20
        kept = [row.id for row in store.trajectories()]
        assert kept == list(range(300 - len(kept), 300))
        assert store.forget(299) == 1
    with place.open(max_bytes=1 << 20, namespace="feedback-only") as store:
        for _ in range(30):
            store.append([], [feedback(1)] * 1000)
        assert store.bytes() <= 1 << 20
        assert store.last_seq() == 30_000


def test_retention_deletes_what_is_older(place):
    now = [100 * 86400.0]
    with place.open(retention_days=10, clock=lambda: now[0]) as store:
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


def test_arm_sets_without_a_decision_go_after_a_day_and_their_numbers_do_not_come_back(place):
    now = [0.0]
    with place.open(clock=lambda: now[0]) as store:
        for name in "abcd":
            store.put_arms([name], b"", b"")
        store.append([decision(1, arm_set=2)])
        assert store.prune().arm_sets == 0
        now[0] = 2 * 86400.0
        assert store.prune().arm_sets == 2
        assert [store.arms(version) is not None for version in (1, 2, 3, 4)] == [False, True, False, True]
        assert store.put_arms(["a"], b"", b"") == 5
        assert store.integrity() == []


def test_pruning_that_fails_does_not_fail_the_append(place, monkeypatch):
    with place.open(retention_days=1, clock=lambda: 1e9) as store:
        with monkeypatch.context() as patched:
            patched.setattr(bounds.pruning, "drop_before", lambda *_: (_ for _ in ()).throw(SonaStoreError("disk I/O error")))
            assert store.append([decision(1)], [feedback(1)]) == 1
        assert store.prune_failures == 1
        assert store.count() == 1
        store.append([decision(2)])
        assert store.count() == 0
        assert store.prune_failures == 1


def test_max_bytes_bounds_the_file_and_the_newest_stay(place):
    x = bytes(4096)
    with place.open(max_bytes=1 << 20) as store:
        for group in range(60):
            ids = range(group * 20, group * 20 + 20)
            store.append([decision(id, x=x) for id in ids], [feedback(id) for id in ids], [trajectory(id, x[:100]) for id in ids])
            assert store.bytes() <= 1 << 20
        assert place.kind != "sqlite" or place.path.stat().st_size <= 1.2 * (1 << 20)
        kept = [row.id for row, _ in store.decisions()]
        assert kept == list(range(1200 - len(kept), 1200))
        assert len(kept) > 100
        assert store.pruned_decisions == 1200 - len(kept)
        assert {row.id for _, row in store.feedback_after(0, 2000)} == set(kept)
        assert store.last_seq() == 1200
        assert store.integrity() == []


def test_a_namespace_is_pruned_for_its_own_size_only(place):
    with place.open(namespace="big") as big, place.open(namespace="small", max_bytes=1 << 20) as small:
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
