"""What is particular to the store on a server: its URL, its schema, connections that break, and a lease that can be lost."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from postgres import Server
from stores import VERSION, PostgresPlace, decision, feedback, in_threads

from sona.errors import (
    MissingExtraError,
    SonaClosedError,
    SonaCorruptError,
    SonaError,
    SonaStoreError,
    SonaTypeError,
    SonaValueError,
    SonaVersionError,
)
from sona.store import GroupWriter, open_store
from sona.store.open import namespaces_of, shown
from sona.store.outcomes import LeaseLost, UnknownOutcome

psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'sona[postgres]'")

from sona.store.postgres import PostgresStore, connection, schema  # noqa: E402
from sona.store.postgres.url import Place  # noqa: E402

SECRET = "s3cret%2Fword"


@pytest.fixture
def place(postgres_server: Server) -> PostgresPlace:
    return PostgresPlace(postgres_server.url())


@pytest.fixture
def store(place: PostgresPlace) -> Iterator[Any]:
    with place.open() as opened:
        yield opened


def wait_for(true: Callable[[], object], seconds: float = 20.0) -> None:
    give_up = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < give_up, "it does not become true"
        time.sleep(0.005)


def terminate(place: PostgresPlace, pid: int) -> None:
    """As an administrator, a failover or a broken network would; returns when the session is gone."""
    place.raw("SELECT pg_terminate_backend(?)", pid)
    wait_for(lambda: not place.raw("SELECT 1 FROM pg_stat_activity WHERE pid = ?", pid))


def lease_pid(store: Any) -> int:
    return store._lease._session.pid


# -- where it is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (f"postgresql://u:{SECRET}@db.example:5433/app", "postgresql://u@db.example:5433/app"),
        (f"postgres://u@db/app?password={SECRET}&sslmode=require&schema=mine", "postgresql://u@db/app?schema=mine"),
        ("postgresql:///app?host=/tmp/x&user=u", "postgresql://u@%2Ftmp%2Fx/app"),
        (f"postgresql://u:{SECRET}@[::1]:1/app", "postgresql://u@[::1]:1/app"),
    ],
)
def test_a_url_is_shown_without_its_password(url, expected):
    place = Place.of(url)
    assert (place.shown, shown(url)) == (expected, expected)
    assert "s3cret" not in repr(place)
    if "s3cret" in url:
        assert place.parameters["password"] == "s3cret/word"
        assert place.scrubbed("no s3cret/word here") == "no *** here"


def test_an_error_of_several_lines_is_told_in_one():
    with pytest.raises(SonaStoreError, match=r"^postgresql://u@127.0.0.1:1/x: .*[Cc]onnection refused; Is the server .*$") as caught:
        open_store("postgresql://u@127.0.0.1:1/x")
    assert "\n" not in str(caught.value)


def test_no_error_and_no_log_shows_a_password(caplog):
    caplog.set_level(logging.DEBUG)
    bad = [
        f"postgresql://u:{SECRET}@127.0.0.1:1/app",
        f"postgresql://u:{SECRET}@no.such.host.invalid/app",
        f"postgresql://u:{SECRET}%@127.0.0.1:1/app",
        f"postgresql://u:{SECRET}@[::1/app",
        f"postgresql://u:{SECRET}@127.0.0.1:1/app?no_such_option=1",
    ]
    for url in bad:
        for call in (open_store, namespaces_of):
            with pytest.raises(SonaError) as caught:
                call(url)
            error: BaseException | None = caught.value
            while error is not None:
                assert "s3cret" not in f"{error} {error!r}"
                error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize("schema", ["", "x" * 64, "é" * 32, "a\0b", "pg_mine"])
def test_a_schema_has_a_name_that_the_server_keeps(place, schema):
    with pytest.raises(SonaValueError, match="schema of 1 to 63 bytes"):
        place.open(schema=schema)
    with pytest.raises(SonaTypeError, match="schema"):
        place.open(schema=7)


def test_a_schema_of_any_name_is_quoted(place):
    name = 'Some"; DROP SCHEMA public; -- é'
    with place.open(schema=name) as store:
        store.append([decision(1)], [feedback(1)])
        store.put_state("adapter", b"x", 1)
        assert store.integrity() == []
        assert store.forget(1) == 2
    assert place.raw("SELECT 1 FROM pg_namespace WHERE nspname = ?", name) == [(1,)]
    assert place.raw("SELECT 1 FROM pg_namespace WHERE nspname = 'public'") == [(1,)]


def test_looking_makes_nothing(place):
    with pytest.raises(SonaStoreError, match="no such store"):
        namespaces_of(place.where)
    assert place.raw("SELECT 1 FROM pg_namespace WHERE nspname = ?", place.schema) == []
    place.open(namespace="b").close()
    place.open(namespace="a").close()
    assert namespaces_of(place.where) == ["a", "b"]


@pytest.mark.parametrize(
    "option", [{"max_bytes": 1000}, {"retention_days": 0}, {"statement_timeout_ms": 0}, {"statement_timeout_ms": 1.5}, {"namespace": "/"}]
)
def test_options_are_checked_before_a_server_is_asked(option):
    with pytest.raises(SonaValueError, match=next(iter(option))):
        PostgresStore("postgresql://127.0.0.1:1/app", **option)


def test_without_psycopg_the_error_names_the_command(run_python):
    done = run_python(
        """
        import sys
        sys.modules["psycopg"] = None
        import sona.store
        for call in (lambda: sona.store.open_store("postgresql://u:pass@h/d"), lambda: sona.store.PostgresStore):
            try:
                call()
            except sona.MissingExtraError as error:
                print(error)
        """
    )
    assert done.stdout.count("pip install 'sona[postgres]'") == 2
    assert issubclass(MissingExtraError, ImportError)


# -- the schema ----------------------------------------------------------------------------------------------------


def test_somebody_elses_schema_is_refused_and_kept(place):
    place.raw(f"CREATE SCHEMA {place.schema}")
    place.raw(f"CREATE TABLE {place.schema}.theirs (a int)")
    with pytest.raises(SonaCorruptError, match="with other tables"):
        place.open()
    assert place.raw("SELECT tablename FROM pg_tables WHERE schemaname = ?", place.schema) == [("theirs",)]


def test_an_empty_schema_becomes_a_store(place):
    place.raw(f"CREATE SCHEMA {place.schema}")
    with place.open() as store:
        assert store.integrity() == []


def test_a_newer_schema_is_refused_with_both_versions_named(place, store):
    store.append([decision(1)])
    place.raw("UPDATE sona_schema SET version = 7")
    with pytest.raises(SonaVersionError, match=r"version 1 or older .* got 7"):
        place.open()
    with pytest.raises(SonaVersionError, match="version 1, got 7"):  # a newer sona has migrated it since this one opened it
        store.append([decision(2)])
    assert store.count() == 1
    assert any("got 7" in finding for finding in store.integrity())


def test_an_older_schema_is_migrated_and_its_rows_stay(place, monkeypatch):
    with place.open() as store:
        store.append([decision(1)], [feedback(1)])
    step = ("ALTER TABLE {schema}.decisions ADD COLUMN region TEXT", "UPDATE {schema}.decisions SET region = 'eu'")
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, step))
    stores = []
    in_threads(*[lambda: stores.append(place.open())] * 3)
    for store in stores:
        assert store.decision(1) == decision(1)
        assert store.integrity() == []
        store.close()
    assert place.raw("SELECT region FROM decisions") == [("eu",)]
    assert place.raw("SELECT version FROM sona_schema") == [(2,)]


def test_a_migration_that_fails_changes_nothing(place, monkeypatch):
    with place.open() as store:
        store.append([decision(1)])
    with monkeypatch.context() as patched:
        patched.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, ("DELETE FROM {schema}.decisions", "NOT SQL")))
        with pytest.raises(SonaStoreError, match="syntax"):
            place.open()
    with place.open() as store:
        assert store.decision(1) == decision(1)


def test_an_old_server_is_refused(place, monkeypatch):
    monkeypatch.setattr(schema, "OLDEST_SERVER", 990000)
    with pytest.raises(SonaStoreError, match="expected PostgreSQL 99 or newer"):
        place.open()


def test_commits_wait_for_the_disk_whatever_the_role_says(place):
    place.raw("CREATE ROLE hasty LOGIN SUPERUSER")
    place.raw("ALTER ROLE hasty SET synchronous_commit = off")
    with open_store(place.where.replace("sona@", "hasty@")) as store, store._db.reading() as link:
        assert link.execute("SHOW synchronous_commit").fetchone() == ("on",)


def test_a_role_that_may_not_add_pgvector_keeps_bytes(place, monkeypatch):
    place.raw(f"CREATE ROLE {place.schema}_owner LOGIN")
    place.raw(f"CREATE SCHEMA {place.schema} AUTHORIZATION {place.schema}_owner")
    monkeypatch.setattr(schema, "EXTENSION", "postgres_fdw")  # there, not in the database, and not for everybody
    with open_store(place.where.replace("sona@", f"{place.schema}_owner@")) as store:
        assert not store.pgvector
        store.put_state("graph", b"1", 0, vectors=[(1, b"0123")])
        assert list(store.vectors_of("graph")) == [(1, b"0123")]
        assert store.integrity() == []


def test_two_processes_that_open_a_new_database_at_once_both_get_pgvector(place, monkeypatch):
    """The first worker of a deployment brings pgvector; the others connected before it was there."""
    database = f"new_{place.schema}"
    place.raw(f"CREATE DATABASE {database}")
    new = PostgresPlace(place.where.replace("/postgres?", f"/{database}?"))
    prepare, opened = schema.prepare, []

    def while_another_one_is_faster(link: Any, where: Place) -> None:
        monkeypatch.setattr(schema, "prepare", prepare)
        opened.append(new.open())
        prepare(link, where)

    monkeypatch.setattr(schema, "prepare", while_another_one_is_faster)
    with new.open() as store, opened[0] as other:
        assert store.pgvector is other.pgvector is True
        store.put_state("graph", b"1", 0, vectors=[(1, b"0123")])
        assert list(other.vectors_of("graph")) == [(1, b"0123")]


# -- connections that break ----------------------------------------------------------------------------------------


def test_a_session_that_ended_between_calls_is_not_noticed(place, store):
    store.append([decision(1)], [feedback(1)])
    terminate(place, store._db.pid)
    assert store.append([decision(2)], [feedback(2)]) == 2
    terminate(place, store._db.pid)
    assert store.count() == 2


def test_a_session_that_ends_in_a_transaction_leaves_nothing_of_it(place, store):
    store.append([decision(1)])

    def delete():
        with store._db.writing() as link:
            link.execute("DELETE FROM decisions")
            terminate(place, store._db.pid)
            link.execute("DELETE FROM feedback")

    with pytest.raises(SonaStoreError):
        delete()
    assert store.count() == 1
    store.append([decision(2)])
    assert store.count() == 2


@contextmanager
def answer_lost(store: Any, monkeypatch: pytest.MonkeyPatch, *, done: bool) -> Iterator[None]:
    """The connection breaks at the next commit, after or before the server has done it."""
    execute = connection.Link.execute

    def broken(self: Any, sql: str, parameters: Any = (), /, **options: Any) -> Any:
        if sql != "COMMIT":
            return execute(self, sql, parameters, **options)
        monkeypatch.setattr(connection.Link, "execute", execute)
        if done:
            execute(self, sql)
        self.raw.close()
        raise psycopg.OperationalError("the connection is lost")

    monkeypatch.setattr(connection.Link, "execute", broken)
    yield
    assert connection.Link.execute is execute, "there was no commit"


def test_a_commit_whose_answer_is_lost_was_done_or_was_not(store, monkeypatch):
    with answer_lost(store, monkeypatch, done=True):
        assert store.append([decision(1)], [feedback(1)]) == 1
    with answer_lost(store, monkeypatch, done=False), pytest.raises(SonaStoreError, match="connection is lost"):
        store.append([decision(2)], [feedback(2)])
    assert [row.id for row, _ in store.decisions()] == [1]
    assert store.last_seq() == 1


@pytest.mark.parametrize("done", [True, False])
def test_a_group_whose_fate_cannot_be_learned_at_once_is_not_written_twice(store, monkeypatch, done):
    monkeypatch.setattr(connection, "RESOLVE_SECONDS", 0.0)
    rows = [[decision(1)], [feedback(1, 0.25), feedback(1, 0.75)], []]
    waiting = [rows]
    writer = GroupWriter(store, lambda: waiting.pop() if waiting else ((), (), ()), start=False, on_error=lambda _: None)

    def unreachable(self: Any, mark: int) -> None:
        raise SonaStoreError("not reachable")

    with monkeypatch.context() as patched:
        patched.setattr(connection.Connection, "committed", unreachable)
        with answer_lost(store, patched, done=done), pytest.raises(SonaStoreError, match="may have been done") as caught:
            writer.flush()
        assert isinstance(caught.value.__cause__, UnknownOutcome)
        with pytest.raises(SonaStoreError):
            writer.flush()
    waiting.append([[decision(2)], [feedback(2)], []])  # comes meanwhile
    store.put_arms(["a"], b"", b"")  # so does another transaction
    writer.flush()
    assert [(seq, row.id, row.reward) for seq, row in store.feedback_after(0)] == [(1, 1, 0.25), (2, 1, 0.75), (3, 2, 1.0)]
    assert store.count() == 2
    writer.close()


def test_a_commit_that_a_crash_of_the_server_undid_is_not_taken_for_done(own_server, monkeypatch):
    """After a crash the server gives out numbers of transactions again of which nothing had reached its log: they say nothing."""
    place = PostgresPlace(own_server.url())
    execute = connection.Link.execute

    def crash(self: Any, sql: str, parameters: Any = (), /, **options: Any) -> Any:
        if sql == "COMMIT":
            monkeypatch.setattr(connection.Link, "execute", execute)
            own_server.restart("immediate")
            for _ in range(30):  # others, which are done
                place.raw("SELECT pg_current_xact_id()")
        return execute(self, sql, parameters, **options)

    with place.open() as store:
        store.append([decision(1)], [feedback(1)])
        monkeypatch.setattr(connection.Link, "execute", crash)
        with pytest.raises(SonaStoreError):
            store.append([decision(2)], [feedback(2)])
        assert (store.count(), store.last_seq()) == (1, 1)
        assert store.append([decision(2)], [feedback(2)]) == 2


def test_a_statement_that_waits_too_long_is_a_store_error(place):
    with place.open(statement_timeout_ms=100) as store, psycopg.connect(place.where.rpartition("&schema")[0]) as other:
        other.execute(f"SELECT 1 FROM {place.schema}.namespaces FOR UPDATE".encode())
        began = time.monotonic()
        with pytest.raises(SonaStoreError, match="more than 100 ms"):
            store.append([decision(1)])
        assert time.monotonic() - began < 5
        assert store.decision(1) is None  # readers do not wait for writers
        other.rollback()
        store.append([decision(1)])
        assert store.count() == 1


def test_a_server_that_hangs_has_its_connection_cut(own_server, monkeypatch):
    monkeypatch.setattr(connection, "GRACE_SECONDS", 0.2)
    monkeypatch.setattr(connection, "CONNECT_SECONDS", 2)
    with open_store(own_server.url(), statement_timeout_ms=100) as store:
        store.append([decision(1)])
        with own_server.hung():
            began = time.monotonic()
            for _ in range(3):
                with pytest.raises(SonaStoreError):
                    store.append([decision(2)])
            assert time.monotonic() - began < 15
        wait_for(lambda: _appended(store, 3))
        assert store.decision(1) is not None


def _appended(store: Any, id: int) -> bool:
    try:
        store.append([decision(id)])
    except SonaStoreError:
        return False
    return True


def test_nothing_acknowledged_is_lost_by_restarts_of_the_server(own_server):
    """Rows are recorded all the time; those that a flush acknowledged are there, those that came meanwhile are written afterwards, once."""
    rows: list[int] = []

    def drain() -> tuple[list[Any], list[Any], tuple[()]]:
        taken = rows[:]
        del rows[: len(taken)]
        return [decision(id) for id in taken], [feedback(id) for id in taken], ()

    acknowledged = recorded = 0
    with open_store(own_server.url()) as store:
        writer = GroupWriter(store, drain, interval=0.005, backoff=(0.01, 0.1), on_error=lambda _: None)
        for mode in ("immediate", "fast", "immediate"):
            stop = threading.Event()
            server = threading.Thread(target=lambda mode=mode, stop=stop: (own_server.restart(mode, 0.2), stop.set()))
            server.start()
            longest = 0.0
            while not stop.is_set():
                began = time.perf_counter()
                recorded += 1
                rows.append(recorded)
                writer.notify()
                longest = max(longest, time.perf_counter() - began)
                if recorded % 50 == 0:
                    try:
                        writer.flush()
                        acknowledged = recorded
                    except SonaStoreError:
                        pass
                time.sleep(0.001)
            server.join()
            own_server.stop("immediate")
            own_server.start()
            wait_for(lambda: _appended(store, 10**9))
            seen = {row.id for row, reward in store.decisions() if reward is not None}
            assert seen.issuperset(range(1, acknowledged + 1))
        writer.flush()
        assert writer.failed > 0
        assert writer.counters()["dropped"] == 0
        assert [row.id for _, row in store.feedback_after(0, 10**6)] == list(range(1, recorded + 1))
        assert store.integrity() == []
        writer.close()


def test_calls_fail_at_once_while_the_server_is_away(own_server):
    with open_store(own_server.url()) as store:
        own_server.stop()
        wait_for(lambda: not _appended(store, 1))
        began = time.monotonic()
        for _ in range(200):
            with pytest.raises(SonaStoreError):
                store.count()
        assert time.monotonic() - began < 5
        own_server.start()
        wait_for(lambda: _appended(store, 2))


# -- the lease -----------------------------------------------------------------------------------------------------


def test_who_lost_the_lease_writes_nothing_any_more(place):
    with place.open() as a, place.open() as b:
        assert (a.try_lease(), a.term, b.try_lease()) == (True, 1, False)
        a.put_state("adapter", b"a", 1)
        terminate(place, lease_pid(a))
        assert b.try_lease()
        assert b.term > a.term
        b.put_state("adapter", b"b", 2)
        assert a.lease  # it does not know yet
        calls = [
            lambda: a.put_state("adapter", b"late", 3),
            lambda: a.put_version("adapter", VERSION),
            lambda: a.replace_without("s", "adapter", b"late", 0, versions_since=0.0),
        ]
        for call in calls:
            with pytest.raises(LeaseLost, match="lost"):
                call()
            assert not a.lease
        assert b.get_state("adapter") == (b"b", 2)
        assert b.versions("adapter") == []
        b.release_lease()
        for call in calls:  # only who takes it anew, and reads what the others wrote, may write again
            with pytest.raises(LeaseLost):
                call()
        assert a.try_lease()
        assert a.term > b.term
        with pytest.raises(LeaseLost, match="in between"):
            a.put_state("adapter", b"of the first term", 3, term=1)
        a.put_state("adapter", b"a again", 3, term=a.term)
        assert b.get_state("adapter") == (b"a again", 3)
        a.append([decision(1)])  # never needed a lease
        with pytest.raises(SonaStoreError, match="holds the learning lease"):
            b.put_state("adapter", b"late", 4)


def test_a_transaction_under_an_old_term_is_rolled_back_at_its_start(place, store):
    assert store.try_lease()
    place.raw("UPDATE namespaces SET fence = fence + 1")
    with pytest.raises(LeaseLost, match="number 2, this was 1"):
        store.put_state("adapter", b"late", 1)
    assert store.get_state("adapter") is None


def test_a_lost_lease_is_noticed_when_asked_for(place):
    with place.open() as a:
        assert a.try_lease()
        assert a.keep_lease()
        terminate(place, lease_pid(a))
        assert a.lease
        assert not a.keep_lease()
        assert not a.lease
        assert a.try_lease()
        assert (a.term, a._lease.number, a.keep_lease()) == (1, 2, True)  # nobody else's


def test_every_taking_has_a_number_and_a_term_ends_where_another_store_begins(place):
    seen = []
    with place.open() as a, place.open() as b:
        assert (a.term, b.term) == (0, 0)
        for store in (a, b, b, a, a):
            assert store.try_lease()
            seen.append((store._lease.number, store.term))
            store.release_lease()
        assert a.try_lease()
        assert a.try_lease()  # held already
        seen.append((a._lease.number, a.term))
    assert seen == [(1, 1), (2, 2), (3, 2), (4, 4), (5, 4), (6, 4)]


def test_of_many_that_want_the_lease_one_gets_it(place):
    stores = [place.open() for _ in range(6)]
    for _ in range(5):
        in_threads(*[store.try_lease for store in stores])
        (holder,) = [store for store in stores if store.lease]
        terminate(place, lease_pid(holder))
        for store in stores:
            store.keep_lease()
    for store in stores:
        store.close()


def test_the_lease_does_not_outlive_its_holder_in_a_forked_child(place, start_python):
    process = start_python(
        """
        import os, sys, time, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        from sona.store import open_store
        store = open_store(sys.argv[1])
        assert store.try_lease()
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        print(child, flush=True)
        time.sleep(60)
        """,
        place.where,
    )
    child = int(process.stdout.readline())
    try:
        with place.open() as store:
            assert not store.try_lease()
            process.kill()
            process.wait()
            wait_for(store.try_lease)
    finally:
        os.kill(child, 9)


# -- telling others ------------------------------------------------------------------------------------------------


def test_others_are_told_of_states_and_versions(place):
    told = threading.Event()
    with place.open() as a, place.open() as b, place.open(namespace="other") as other:
        assert a.watch(told.set)
        assert b.try_lease()
        wait_for(lambda: a._lease._session is not None and a._lease._session.alive)
        for write in (lambda: b.put_state("x", b"1", 0), lambda: b.put_version("x", VERSION)):
            told.clear()
            write()
            assert told.wait(10)
        told.clear()
        other.put_state("x", b"1", 0)
        b.append([decision(1)], [feedback(1)])
        assert not told.wait(0.3)
        a.watch(None)
        b.put_state("x", b"2", 0)
        assert not told.wait(0.3)


def test_a_store_is_not_told_of_its_own_writes(place):
    told = threading.Event()
    with place.open() as a:
        a.watch(told.set)
        for n in range(3):
            a.put_state("x", b"%d" % n, 0)
        assert not told.wait(0.3)


def test_who_watches_is_told_that_the_lease_is_lost(place):
    told = threading.Event()
    with place.open() as a:
        assert a.try_lease()
        a.watch(told.set)
        terminate(place, lease_pid(a))
        assert told.wait(10)
        assert not a.lease


def test_who_watches_is_told_when_the_server_comes_back(own_server):
    told = threading.Event()
    with open_store(own_server.url()) as a:
        a.watch(told.set)
        wait_for(lambda: a._lease._session is not None)
        own_server.restart()
        assert told.wait(20)
        wait_for(lambda: _appended(a, 1))


def test_what_is_told_may_raise_or_close_the_store(place, caplog):
    caplog.set_level(logging.WARNING, logger="sona")
    called = []

    def fail() -> None:
        called.append(1)
        if len(called) > 1:
            a.close()
            return
        raise RuntimeError("no matter")

    with place.open() as a, place.open() as b:
        a.watch(fail)
        wait_for(lambda: a._lease._session is not None and a._lease._session.alive)
        b.put_state("x", b"1", 0)
        wait_for(lambda: called)
        b.put_state("x", b"2", 0)
        wait_for(lambda: a.closed)
    assert "no matter" in caplog.text


# -- ends ----------------------------------------------------------------------------------------------------------


def test_no_session_is_left_behind(place):
    def sessions() -> int:
        return place.raw("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'sona'")[0][0]

    before = sessions()
    with place.open() as store:
        store.watch(lambda: None)
        assert store.try_lease()
        store.forget(1)
        assert sessions() > before
    wait_for(lambda: sessions() == before)
    for call in (lambda: store.watch(print), store.try_lease):
        with pytest.raises(SonaClosedError):
            call()
    assert not store.keep_lease()
