"""The group writer: rows reach the store in groups, flush means durable, a failing store costs bounded memory and no waiting."""

import contextlib
import logging
import sqlite3
import threading
import time
from contextlib import closing

import pytest

from sona.errors import SonaClosedError, SonaStoreError, SonaValueError
from sona.store import DecisionRow, FeedbackRow, GroupWriter, SqliteStore, TrajectoryRow


def decision(id: int, size: int = 4) -> DecisionRow:
    return DecisionRow(id, float(id), bytes(size), 0, 1, None, 1.0, b"")


def feedback(id: int) -> FeedbackRow:
    return FeedbackRow(id, 1.0, float(id))


def trajectory(id: int) -> TrajectoryRow:
    return TrajectoryRow(id, float(id), b"")


class Buffer:
    """What a router keeps of its hot path: rows since the last drain."""

    def __init__(self):
        self.rows = ([], [], [])

    def put(self, *, decisions=(), feedback=(), trajectories=()):
        for kept, new in zip(self.rows, (decisions, feedback, trajectories), strict=True):
            kept.extend(new)

    def drain(self):
        rows, self.rows = self.rows, ([], [], [])
        return rows


class Disk:
    """A store that can be made to fail; remembers its groups as ids."""

    def __init__(self):
        self.groups = []
        self.error = None

    def append(self, decisions, feedback, trajectories):
        if self.error is not None:
            raise self.error
        self.groups.append(tuple([row.id for row in rows] for rows in (decisions, feedback, trajectories)))
        return 0


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def made():
    """(writer without a thread, buffer, disk, clock, errors reported)."""
    buffer, disk, clock, errors = Buffer(), Disk(), Clock(), []

    def make(**options):
        writer = GroupWriter(disk, buffer.drain, start=False, clock=clock, on_error=errors.append, **options)
        return writer, buffer, disk, clock, errors

    return make


# -- driven by step ------------------------------------------------------------------------------------------------


def test_a_step_writes_what_was_drained_in_one_transaction(made):
    writer, buffer, disk, _, errors = made()
    buffer.put(decisions=[decision(1), decision(2)], feedback=[feedback(1)], trajectories=[trajectory(9)])
    assert writer.step() == 4
    assert writer.step() == 0
    assert disk.groups == [([1, 2], [1], [9])]
    assert writer.counters() == {"written": 4, "failed": 0, "spooled": 0, "dropped": 0, "groups": 1}
    assert errors == []


def test_a_large_group_is_split_with_decisions_before_feedback(made):
    writer, buffer, disk, _, _ = made(group_rows=3)
    buffer.put(decisions=map(decision, range(4)), feedback=map(feedback, range(3)), trajectories=[trajectory(7)])
    assert writer.step() == 8
    assert disk.groups == [([0, 1, 2], [], []), ([3], [0], [7]), ([], [1, 2], [])]


def test_a_failed_group_is_kept_in_order_and_tried_again_after_doubling_waits(made):
    writer, buffer, disk, clock, errors = made(backoff=(1.0, 4.0))
    disk.error = SonaStoreError("disk full")
    attempts = []
    for tick in range(24):
        clock.now = tick * 0.5
        buffer.put(decisions=[decision(tick)], feedback=[feedback(tick)])
        before = writer.failed
        assert writer.step() == 0
        if writer.failed > before:
            attempts.append(clock.now)
    assert attempts == [0.0, 1.0, 3.0, 7.0, 11.0]
    assert writer.spooled == 48
    assert errors == [disk.error] * 5
    disk.error = None
    assert writer.step() == 0
    clock.now = 15.0
    buffer.put(decisions=[decision(24)])
    assert writer.step() == 49
    assert disk.groups == [([*range(25)], [*range(24)], [])]
    # Success ends the waiting: the next failure starts from the first wait again.
    disk.error = SonaStoreError("again")
    buffer.put(decisions=[decision(25)])
    writer.step()
    clock.now = 16.0
    disk.error = None
    assert writer.step() == 1


def test_who_waits_is_told_when_what_was_recorded_before_is_durable(made):
    writer, buffer, disk, _, _ = made()
    heard = []
    buffer.put(feedback=[feedback(1)])
    writer.when_durable(lambda error: heard.append((error, list(disk.groups))))
    buffer.put(feedback=[feedback(2)])
    assert heard == []
    writer.step()
    assert heard == [(None, [([], [1, 2], [])])]
    writer.step()
    writer.flush()
    assert len(heard) == 1


@pytest.mark.parametrize("way", ["step", "flush", "close"])
def test_who_waits_is_told_that_a_group_was_not_written(made, way):
    writer, buffer, disk, _, _ = made()
    heard = []
    buffer.put(feedback=[feedback(1)])
    disk.error = OSError("full")
    writer.step()
    for _ in range(2):
        writer.when_durable(heard.append)
    with contextlib.suppress(SonaStoreError):  # also within the pause after a failure: who waits wants to know
        getattr(writer, way)()
    assert [(type(error), str(error)) for error in heard] == [(SonaStoreError, "flush failed, 1 rows wait to be written: full")] * 2
    assert heard[0] is not heard[1]
    disk.error = None
    if way != "close":
        writer.when_durable(heard.append)
        writer.step()
        assert heard[2] is None
        assert disk.groups == [([], [1], [])]


def test_who_waits_is_told_of_lost_rows_and_one_who_raises_keeps_nothing_from_the_others(made, caplog):
    writer, buffer, disk, _, _ = made(spool_rows=2)
    disk.error = OSError("full")
    buffer.put(feedback=[feedback(id) for id in range(5)])
    writer.step()
    disk.error = None
    heard = []
    writer.when_durable(lambda error: 1 / 0)
    writer.when_durable(heard.append)
    writer.step()
    assert "3 rows were dropped" in str(heard[0])
    assert "ZeroDivisionError" in caplog.text
    writer.flush()  # it has been said


def test_who_comes_after_the_end_is_told_so_and_who_waited_hears_of_the_last_group(made):
    writer, buffer, disk, _, _ = made()
    heard = []
    buffer.put(feedback=[feedback(1)])
    writer.when_durable(heard.append)
    writer.close()
    assert heard == [None]
    assert disk.groups == [([], [1], [])]
    writer.when_durable(heard.append)
    assert isinstance(heard[1], SonaClosedError)


def test_a_thread_does_not_keep_those_waiting_who_want_to_know():
    buffer, disk = Buffer(), Disk()
    with GroupWriter(disk, buffer.drain, interval=1000) as writer:
        for round in range(20):  # from the second on, the thread is in its pause
            told = threading.Event()
            buffer.put(feedback=[feedback(round)])
            writer.when_durable(lambda error, told=told: told.set())
            assert told.wait(60)
        assert [group[1] for group in disk.groups] == [[round] for round in range(20)]


def test_nobody_waits_for_ever_while_groups_fail_and_threads_flush():
    buffer, disk = Buffer(), Disk()
    lock, heard, asked, stop = threading.Lock(), [], [], threading.Event()

    def drain():
        with lock:
            return buffer.drain()

    def ask(seed):
        for each in range(200):
            number = seed * 1000 + each
            with lock:
                buffer.put(feedback=[feedback(number)])
            asked.append(number)
            writer.when_durable(lambda error, number=number: heard.append((number, error, number in written())))

    def written():
        return {id for group in list(disk.groups) for id in group[1]}

    def disturb():
        while not stop.is_set():
            disk.error = None if disk.error else OSError("full")
            with contextlib.suppress(SonaStoreError):
                writer.flush()

    writer = GroupWriter(disk, drain, interval=1e-4, on_error=lambda error: None)
    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(3)]
    disturber = threading.Thread(target=disturb)
    for thread in (*threads, disturber):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    disturber.join()
    disk.error = None
    writer.close()
    assert sorted(number for number, _, _ in heard) == sorted(asked)
    assert all(durable for _, error, durable in heard if error is None)
    assert sorted(id for group in disk.groups for id in group[1]) == sorted(asked)


def test_what_was_written_before_a_failure_is_not_written_again(made):
    writer, buffer, disk, clock, _ = made(group_rows=2)
    append = disk.append

    def second_fails(*rows):
        if len(disk.groups) == 1 and clock.now == 0:
            raise SonaStoreError("disk full")
        return append(*rows)

    disk.append = second_fails
    buffer.put(decisions=map(decision, range(5)))
    assert writer.step() == 2
    assert writer.spooled == 3
    clock.now = 100.0
    assert writer.step() == 3
    assert disk.groups == [([0, 1], [], []), ([2, 3], [], []), ([4], [], [])]


def test_a_full_spool_loses_oldest_decisions_first_and_feedback_last(made):
    writer, buffer, disk, clock, errors = made(spool_rows=6)
    disk.error = SonaStoreError("disk full")
    buffer.put(decisions=map(decision, range(4)), feedback=map(feedback, range(3)), trajectories=map(trajectory, range(2)))
    writer.step()
    assert (writer.spooled, writer.dropped) == (6, 3)
    buffer.put(feedback=map(feedback, range(3, 8)))
    writer.step()
    assert (writer.spooled, writer.dropped) == (6, 8)
    assert "2 rows were dropped" not in str(errors[-1])
    assert "5 rows were dropped" in str(errors[-1])
    disk.error = None
    clock.now = 1e3
    writer.step()
    assert disk.groups == [([], [2, 3, 4, 5, 6, 7], [])]


def test_the_spool_is_bounded_in_bytes(made):
    writer, buffer, disk, clock, _ = made(spool_bytes=100_000)
    disk.error = SonaStoreError("disk full")
    for n in range(50):
        buffer.put(decisions=[decision(n, 4000)], feedback=[feedback(n)])
        writer.step()
    kept = writer.spooled - 50
    assert 15 < kept < 25
    disk.error = None
    clock.now = 1e6
    writer.step()
    assert disk.groups == [([*range(50 - kept, 50)], [*range(50)], [])]
    # Nothing is left in the books: the same load passes again.
    disk.error = SonaStoreError("disk full")
    buffer.put(decisions=[decision(n, 4000) for n in range(15)])
    writer.step()
    assert writer.spooled == 15


def test_flush_raises_when_the_write_fails_and_keeps_the_rows(made):
    writer, buffer, disk, _, errors = made()
    disk.error = SonaStoreError("disk full")
    buffer.put(decisions=[decision(1)])
    for _ in range(2):  # flush tries at once, whatever the wait
        with pytest.raises(SonaStoreError, match="1 rows wait to be written: disk full"):
            writer.flush()
    assert writer.failed == 2
    assert errors == []  # who calls flush is told by flush
    disk.error = None
    writer.flush()
    assert disk.groups == [([1], [], [])]


def test_flush_says_once_that_rows_were_dropped(made):
    writer, buffer, disk, _, _ = made(spool_rows=2)
    disk.error = SonaStoreError("disk full")
    buffer.put(decisions=map(decision, range(5)))
    writer.step()
    disk.error = None
    with pytest.raises(SonaStoreError, match="3 rows were dropped"):
        writer.flush()
    assert disk.groups == [([3, 4], [], [])]
    writer.flush()


def test_rows_that_the_store_will_never_take_do_not_block_the_rest(made):
    writer, buffer, disk, _, errors = made()
    disk.error = SonaValueError("expected something else")
    buffer.put(decisions=[decision(1)])
    assert writer.step() == 0
    assert (writer.dropped, writer.spooled, len(errors)) == (1, 0, 1)
    disk.error = None
    buffer.put(decisions=[decision(2)])
    assert writer.step() == 1
    with pytest.raises(SonaStoreError, match="1 rows were dropped"):
        writer.flush()


def test_a_drain_that_raises_is_counted_and_known_to_the_next_flush():
    def drain():
        raise RuntimeError("broken")

    errors = []
    writer = GroupWriter(Disk(), drain, start=False, on_error=errors.append)
    assert writer.step() == 0
    assert writer.failed == 1
    assert [str(error) for error in errors] == ["broken"]
    writer._drain = lambda: ((), (), ())
    with pytest.raises(SonaStoreError, match="broken"):
        writer.flush()
    writer.flush()


def test_on_error_may_raise_and_may_call_back(made, caplog):
    buffer, disk = Buffer(), Disk()
    disk.error = SonaStoreError("disk full")
    called = []

    def on_error(error):
        called.append(error)
        with pytest.raises(SonaStoreError):
            writer.flush()  # no lock is held here
        raise RuntimeError("in the callback")

    writer = GroupWriter(disk, buffer.drain, start=False, on_error=on_error, clock=Clock(), backoff=(1e-9, 1e-9))
    buffer.put(decisions=[decision(1)])
    with caplog.at_level(logging.ERROR, "sona"):
        writer.step()
        writer._clock.now = 1.0
        writer.step()
    assert called == [disk.error] * 2
    assert len(caplog.records) == 1


def test_without_on_error_a_failure_is_logged_and_not_at_every_step(caplog):
    buffer, disk, clock = Buffer(), Disk(), Clock()
    disk.error = SonaStoreError("disk full")
    writer = GroupWriter(disk, buffer.drain, start=False, clock=clock, backoff=(0.1, 10.0))
    with caplog.at_level(logging.WARNING, "sona"):
        for tick in range(100):
            clock.now = tick * 0.1
            buffer.put(decisions=[decision(tick)])
            writer.step()
    assert len(caplog.records) == 1
    assert "disk full" in caplog.text


def test_flush_from_within_drain_is_an_error_and_not_a_deadlock():
    def drain():
        writer.flush()
        return (), (), ()

    writer = GroupWriter(Disk(), drain, start=False)
    with pytest.raises(SonaStoreError, match="same thread"):
        writer.flush()


def test_close_from_within_a_group_gives_no_rows_up(made):
    # A signal handler that closes while the main thread flushes.
    writer, buffer, disk, _, _ = made()
    append = disk.append

    def interrupted(*rows):
        with pytest.raises(SonaStoreError, match="same thread"):
            writer.close()
        return append(*rows)

    disk.append = interrupted
    buffer.put(decisions=[decision(1)])
    writer.flush()
    assert not writer.closed
    assert disk.groups == [([1], [], [])]


def test_close_writes_the_rest_and_is_final(made):
    writer, buffer, disk, _, _ = made()
    buffer.put(decisions=[decision(1)])
    with writer:
        pass
    writer.close()
    assert disk.groups == [([1], [], [])]
    assert writer.closed
    writer.notify()
    for call in (writer.step, writer.flush):
        with pytest.raises(SonaClosedError):
            call()


def test_close_says_what_it_could_not_write(made):
    writer, buffer, disk, _, _ = made()
    disk.error = SonaStoreError("disk full")
    buffer.put(decisions=[decision(1), decision(2)])
    with pytest.raises(SonaStoreError, match="2 rows unwritten: disk full"):
        writer.close()
    assert writer.dropped == 2
    writer.close()


@pytest.mark.parametrize(
    "options",
    [
        {"interval": 0.0},
        {"interval": float("nan")},
        {"spool_rows": 0},
        {"spool_bytes": 0},
        {"group_rows": 0},
        {"backoff": (0.0, 1.0)},
        {"backoff": (2.0, 1.0)},
        {"backoff": (1.0, float("inf"))},
    ],
)
def test_options_are_checked(options):
    with pytest.raises(SonaValueError):
        GroupWriter(Disk(), Buffer().drain, start=False, **options)
    with pytest.raises(SonaValueError, match="timeout"):
        GroupWriter(Disk(), Buffer().drain, start=False).flush(timeout=-1)


# -- with its thread -----------------------------------------------------------------------------------------------


def wait_for(condition, seconds=20.0):
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.001)


def test_the_thread_writes_what_was_notified_and_rests_otherwise():
    buffer, disk, drains = Buffer(), Disk(), []

    def drain():
        drains.append(time.monotonic())
        return buffer.drain()

    with GroupWriter(disk, drain, interval=0.02) as writer:
        time.sleep(0.1)
        assert drains == []
        for n in range(400):
            buffer.put(decisions=[decision(n)])
            writer.notify()
            time.sleep(0.0002)
        wait_for(lambda: writer.written == 400)
        assert len(drains) <= (drains[-1] - drains[0]) / 0.02 + 2
        time.sleep(0.1)
        rest = len(drains)
        time.sleep(0.1)
        assert len(drains) == rest
    assert sorted(id for group in disk.groups for id in group[0]) == list(range(400))


def test_a_row_recorded_while_the_writer_drains_is_not_overlooked():
    buffer, disk = Buffer(), Disk()

    def drain():
        taken = buffer.drain()
        if taken[0] and taken[0][0].id == 1:  # as another thread would, just after the rows were taken
            buffer.put(decisions=[decision(2)])
            writer.notify()
        return taken

    with GroupWriter(disk, drain, interval=0.001) as writer:
        buffer.put(decisions=[decision(1)])
        writer.notify()
        wait_for(lambda: writer.written == 2)
    assert disk.groups == [([1], [], []), ([2], [], [])]


def test_a_thread_retries_without_being_notified_again():
    buffer, disk = Buffer(), Disk()
    disk.error = SonaStoreError("disk full")
    with GroupWriter(disk, buffer.drain, interval=0.005, backoff=(0.01, 0.02), on_error=lambda error: None) as writer:
        buffer.put(decisions=[decision(1)])
        writer.notify()
        wait_for(lambda: writer.failed >= 3)
        disk.error = None
        wait_for(lambda: writer.written == 1)
    assert disk.groups == [([1], [], [])]


def test_no_row_is_lost_or_doubled_between_hot_threads_flushes_and_the_writer():
    lock, rows, disk = threading.Lock(), [], Disk()

    def drain():
        with lock:
            taken = rows[:]
            rows.clear()
        return taken, (), ()

    def produce(base):
        for n in range(2000):
            with lock:
                rows.append(decision(base + n))
            writer.notify()
            if n % 500 == 0:
                writer.flush()
                assert any(base + n in group[0] for group in list(disk.groups))

    writer = GroupWriter(disk, drain, interval=0.001)
    threads = [threading.Thread(target=produce, args=(base,)) for base in (0, 10_000, 20_000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    writer.close()
    written = [id for group in disk.groups for id in group[0]]
    assert sorted(written) == [base + n for base in (0, 10_000, 20_000) for n in range(2000)]


def test_flush_and_close_give_up_after_their_timeout_when_the_store_hangs():
    buffer, entered, release = Buffer(), threading.Event(), threading.Event()

    class Hanging:
        def append(self, decisions, feedback, trajectories):
            entered.set()
            assert release.wait(30)
            return 0

    writer = GroupWriter(Hanging(), buffer.drain, interval=0.001)
    buffer.put(decisions=[decision(1)])
    writer.notify()
    assert entered.wait(20)
    with pytest.raises(SonaStoreError, match="still writing"):
        writer.flush(timeout=0.01)
    with pytest.raises(SonaStoreError, match="still writing"):
        writer.close(timeout=0.01)
    writer.close()
    release.set()
    writer._thread.join(20)
    assert not writer._thread.is_alive()


def test_close_from_two_threads_and_from_the_callback_ends_once():
    buffer, disk = Buffer(), Disk()
    disk.error = SonaStoreError("disk full")
    done = threading.Event()

    def on_error(error):
        with pytest.raises(SonaStoreError):
            writer.close()
        done.set()

    writer = GroupWriter(disk, buffer.drain, interval=0.001, on_error=on_error)
    buffer.put(decisions=[decision(1)])
    writer.notify()
    assert done.wait(20)
    threads = [threading.Thread(target=writer.close) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert writer.closed


def test_notify_does_not_wait_for_a_group_under_way():
    buffer, entered, release = Buffer(), threading.Event(), threading.Event()

    class Slow(Disk):
        def append(self, *rows):
            entered.set()
            release.wait(30)
            return super().append(*rows)

    disk = Slow()
    with GroupWriter(disk, buffer.drain, interval=0.001) as writer:
        buffer.put(decisions=[decision(1)])
        writer.notify()
        assert entered.wait(20)
        buffer.put(decisions=[decision(2)])
        for _ in range(1000):
            writer.notify()
        release.set()
        wait_for(lambda: writer.written == 2)
    assert disk.groups == [([1], [], []), ([2], [], [])]


def test_a_store_outage_of_a_real_file_is_survived(tmp_path):
    buffer = Buffer()
    with SqliteStore(tmp_path / "sona.db") as store:
        writer = GroupWriter(store, buffer.drain, interval=0.002, backoff=(0.002, 0.01), on_error=lambda error: None)
        with store._db.reading() as conn:
            conn.execute("PRAGMA query_only = ON")
        for n in range(50):
            buffer.put(decisions=[decision(n)], feedback=[feedback(n)])
            writer.notify()
            time.sleep(0.001)
        wait_for(lambda: writer.failed >= 2)
        with pytest.raises(SonaStoreError, match="readonly"):
            writer.flush()
        with store._db.reading() as conn:
            conn.execute("PRAGMA query_only = OFF")
        writer.flush()
        assert [row.id for row, reward in store.decisions() if reward == 1.0] == list(range(50))
        writer.close()


# -- process ends --------------------------------------------------------------------------------------------------


def test_the_end_of_the_interpreter_writes_the_last_group(tmp_path, run_python):
    code = """
        import sys
        from sona.store import DecisionRow, GroupWriter, SqliteStore
        store = SqliteStore(sys.argv[1])
        rows = []
        def drain():
            taken = rows[:]
            rows.clear()
            return taken, (), ()
        writer = GroupWriter(store, drain, interval=60.0)
        rows.append(DecisionRow(1, 0.0, b"", 0, 1, None, 1.0, b""))
        writer.notify()
        while writer.written < 1:
            pass
        rows.append(DecisionRow(2, 0.0, b"", 0, 1, None, 1.0, b""))
        writer.notify()
        """
    run_python(code, tmp_path / "sona.db")
    with SqliteStore(tmp_path / "sona.db") as store:
        assert store.count() == 2


def test_the_end_of_the_interpreter_does_not_wait_for_a_store_that_another_process_holds(tmp_path, start_python):
    """As long as a last group may take, however long the store itself would wait; what was durable stays, the rest is named."""
    code = """
        import sys
        import numpy as np
        from sona import Router, SqliteStore
        from sona.store import writer
        writer.EXIT_TIMEOUT = 0.2
        router = Router(np.eye(3, 8), store=SqliteStore(sys.argv[1], busy_timeout_ms=600_000))
        ids = [router.route(x).id for x in np.eye(8)]
        assert router.feedback(ids[0], 1.0, sync=True)
        print(ids[0], flush=True)
        sys.stdin.readline()
        assert router.feedback(ids[1], 1.0)
        print("the end", flush=True)
        """
    process = start_python(code, tmp_path / "sona.db")
    durable = int(process.stdout.readline())
    with closing(sqlite3.connect(tmp_path / "sona.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "the end\n"
        began = time.monotonic()
        _, err = process.communicate(timeout=30)
        assert time.monotonic() - began < 10
    assert process.returncode == 0
    assert err.count("\n") == 1
    assert "1 rows unwritten" in err
    with SqliteStore(tmp_path / "sona.db") as store:
        assert [row.id for _, row in store.feedback_after(0)] == [durable]
        assert store.integrity() == []


def test_a_forked_child_is_passive_and_the_parent_writes_once(tmp_path, run_python):
    code = """
        import os, sys, threading, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside a thread is what is tested
        from sona.errors import SonaClosedError
        from sona.store import DecisionRow, GroupWriter, SqliteStore
        store = SqliteStore(sys.argv[1])
        rows = []
        def drain():
            taken = rows[:]
            rows.clear()
            return taken, (), ()
        writer = GroupWriter(store, drain, interval=0.001)
        rows.append(DecisionRow(1, 0.0, b"", 0, 1, None, 1.0, b""))
        writer._spool.extend([DecisionRow(2, 0.0, b"", 0, 1, None, 1.0, b"")], [], [])
        heard = []
        writer._flight.acquire()  # as if a group were under way
        child = os.fork()
        if child == 0:
            writer.notify()
            assert writer.spooled == 0
            writer.when_durable(lambda error: heard.append(str(error)))
            assert heard == ["the writer belongs to the parent of this forked process"], heard
            try:
                writer.flush(timeout=5)
            except SonaClosedError as exc:
                assert "forked" in str(exc)
                writer.close()
                sys.exit(0)
            sys.exit(1)
        writer._flight.release()
        assert os.waitpid(child, 0)[1] == 0
        writer.flush()
        print(store.count(), writer.counters()["written"])
        writer.close()
        store.close()
        """
    assert run_python(code, tmp_path / "sona.db").stdout.split() == ["2", "2"]
