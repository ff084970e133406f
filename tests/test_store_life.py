"""A store of either kind among threads, processes and other namespaces; and what it says when it is damaged or closed."""

import re
import threading
from collections.abc import Iterator

import pytest
from stores import VERSION, Place, decision, feedback, in_threads, trajectory

from sona.errors import SonaClosedError, SonaCorruptError, SonaStoreError, SonaValueError
from sona.store import Store


@pytest.fixture
def store(place: Place) -> Iterator[Store]:
    with place.open() as opened:
        yield opened


@pytest.mark.parametrize("name", ["", "../up", "a/b", "nul\0", ".hidden", "-x", "é", "ＣＯＮ", "a" * 65, "a b", "a\n", "a';--"])
def test_names_come_from_an_allow_list(place, store, name):
    with pytest.raises(SonaValueError, match="namespace"):
        place.open(namespace=name)
    with pytest.raises(SonaValueError, match="state name"):
        store.put_state(name, b"", 0)


def test_namespaces_share_the_file_and_nothing_else(place):
    with place.open(namespace="a") as a, place.open(namespace="b") as b:
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


def test_one_store_holds_the_lease_of_a_namespace(place):
    with place.open() as a, place.open() as b, place.open(namespace="other") as other:
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
        assert (a.keep_lease(), other.keep_lease(), b.lease) == (True, True, False)
    assert not a.lease


def test_a_write_names_the_term_in_which_it_was_made(place):
    with place.open() as a, place.open() as b:
        assert a.try_lease()
        first = a.term
        a.put_state("adapter", b"1", 1, term=first)
        a.release_lease()
        assert b.try_lease()
        b.put_state("adapter", b"2", 2, term=b.term)
        b.release_lease()
        assert a.try_lease()
        assert a.term != first
        with pytest.raises(SonaStoreError, match="lost in between"):
            a.put_state("adapter", b"late", 3, term=first)
        with pytest.raises(SonaStoreError, match="lost in between"):
            a.replace_without("s", "adapter", b"late", 0, versions_since=0.0, term=first)
        assert a.get_state("adapter") == (b"2", 2)
        a.put_state("adapter", b"3", 3, term=a.term)


def test_threads_share_a_store(store):
    def append(base):
        for n in range(20):
            store.append([decision(base + n)], [feedback(base + n)])
            assert store.decision(base + n) is not None

    in_threads(*(lambda base=base: append(base) for base in (0, 100, 200, 300)))
    assert store.count() == store.last_seq() == 80
    assert [seq for seq, _ in store.feedback_after(0)] == list(range(1, 81))


@pytest.mark.parametrize("attempt", range(5))
def test_many_openings_of_a_new_file_at_once_all_succeed(place, attempt):
    sessions = []

    def open_and_append():
        with place.open(namespace=f"n{threading.get_ident() % 3}") as store:
            sessions.append(store.session)
            store.append([decision(store.session)])

    in_threads(*[open_and_append] * 8)
    assert len(set(sessions)) == 8
    assert place.raw("SELECT count(*) FROM decisions") == [(8,)]


def test_a_follower_of_feedback_misses_nothing(place):
    seen: list[int] = []
    with place.open() as follower:

        def write(base):
            with place.open() as store:
                for n in range(30):
                    store.append([], [feedback(base + n)])

        def follow():
            seq = 0
            while len(seen) < 60:
                for seq, row in follower.feedback_after(seq, 7):  # noqa: B007, B020
                    seen.append(row.id)

        in_threads(lambda: write(0), lambda: write(100), follow)
    assert sorted(seen) == [*range(30), *range(100, 130)]


def test_after_close_everything_is_refused_and_close_does_nothing(place):
    store = place.open()
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
        with pytest.raises(SonaClosedError, match=f"{re.escape(store.path)}: the store is closed"):
            call()


def test_forked_children_leave_the_parents_store_alone_and_may_open_their_own(place, run_python):
    done = run_python(
        """
        import gc, os, sys, threading, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads is what is tested
        from sona.errors import SonaClosedError
        from sona.store import open_store
        from stores import decision
        store = open_store(sys.argv[1])
        assert store.try_lease()
        stop = threading.Event()
        def work():  # threads are inside of the database's library, opening and closing too, whenever this one forks
            n = 1000 * threading.get_ident()
            while not stop.is_set():
                n += 1
                store.append([decision(n % 2**62)])
                open_store(sys.argv[1], namespace="other").close()
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
                with open_store(sys.argv[1], namespace="children") as mine:
                    mine.append([decision(n)])
                with open_store(sys.argv[1]) as mine:
                    assert not mine.try_lease()
                store.close()
                del store
                gc.collect()
                sys.exit(0)  # with all that the interpreter does at its end
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        for thread in threads:
            thread.join()
        assert "://" in sys.argv[1] or os.path.exists(sys.argv[1] + "-wal")
        assert store.keep_lease()
        assert store.lease
        assert store.count() > 0 and store.decision(1) is None
        with open_store(sys.argv[1], namespace="children") as children:
            print([row.id for row, _ in children.decisions()], store.integrity())
        store.close()
        """,
        place.where,
    )
    assert done.stdout.split("\n")[0] == f"{list(range(8))} []"


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
    ("damage", "value", "finding"),
    [
        ("UPDATE decisions SET x = ?", b"123", "decisions, id 1"),
        ("UPDATE feedback SET reward = ?", float("inf"), "feedback, id 1"),
        ("UPDATE trajectories SET quality = ?", float("inf"), "trajectories, id 1"),
        ("UPDATE namespaces SET last_seq = ?", 0, "numbers up to 0, got 1"),
        ("UPDATE namespaces SET bytes = ?", 1, "the books say 1"),
        ("UPDATE vectors SET crc = ?", 1, "vector 4 of 'graph': does not match"),
        ("UPDATE versions SET reason = ?", "other", "version 1 of 'graph': does not match"),
    ],
)
def test_integrity_names_what_is_wrong(place, store, damage, value, finding):
    store.append([decision(1)], [feedback(1)], [trajectory(1)])
    store.put_state("graph", b"nodes", 0, vectors=[(4, b"four")])
    store.put_version("graph", VERSION)
    assert store.integrity() == []
    place.raw(damage, value)
    assert re.search(finding, "\n".join(store.integrity()))


def test_a_table_that_is_gone_is_named(place, store):
    place.raw("DROP TABLE trajectories")
    assert re.search("unreadable: .*trajectories", "\n".join(store.integrity()))


def test_a_damaged_row_is_not_handed_out(place, store):
    store.append([decision(1)])
    place.raw("UPDATE decisions SET x = ?", b"123")
    with pytest.raises(SonaCorruptError, match="damaged"):
        store.decision(1)
