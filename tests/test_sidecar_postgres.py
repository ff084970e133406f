"""Promises of ``sona learn`` with a store on a server, and where its lease is lost: each record is learned once, whoever led in between."""

import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from fake_ring import FakeRing, feedback, trajectory
from postgres import Server
from test_router_postgres import alone, cut_lease, wait_for
from test_sidecar import CONFIG, DIM, Place, eventually, learned, messages, model_of, producer_of, teach

from sona import SonaEngine
from sona.errors import SonaStoreError
from sona.sidecar import SharedRing, Sidecar, SidecarConfig
from sona.sidecar.consumer import Consumer, LearnerReplaced
from sona.store import Store, open_store

pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'sona[postgres]'")


@pytest.fixture
def url(postgres_server: Server) -> str:
    return postgres_server.url()


class ServerPlace(Place):
    """Ring and weights in files, the store on a server."""

    def __init__(self, directory: Path, url: str) -> None:
        super().__init__(directory)
        self.command[self.command.index("--store") + 1] = url
        self.url = url

    def learned(self) -> list[tuple[str, bytes]]:
        with SonaEngine(CONFIG, store=self.url) as engine:
            return learned(engine)


def test_the_command_learns_into_a_server_and_outlives_kills(tmp_path: Path, url: str, rng: np.random.Generator) -> None:
    place = ServerPlace(tmp_path, url)
    try:
        ring = producer_of(place)
        done: list[tuple[int, bytes]] = []
        for _ in range(3):
            process = place.start("--save", "0.02")
            done += messages(rng, ring, 30, [sequence for sequence, data in done if data[:4] != b"SFBK"])
            eventually(lambda: ring.used < ring.capacity and _saved(url), "a save")
            process.send_signal(signal.SIGKILL)
            process.wait()
            with open_store(url) as store:
                wait_for(store.try_lease)
        report = place.once()
        assert report["store_error"] is None
        assert place.learned() == learned(model_of(done))
        assert ring.used == 0
        with open_store(url) as store:
            assert sum(1 for _ in store.trajectories()) == sum(data[:4] != b"SFBK" for _, data in done)
    finally:
        place.close()


def _saved(url: str) -> bool:
    with open_store(url) as store:
        return store.get_state("default") is not None


class Between:
    """Another engine that leads for a moment, learns one trajectory and saves."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.data = trajectory(rng, DIM)

    def lead(self, url: str, loser: SonaEngine) -> None:
        cut_lease(loser)
        with SonaEngine(CONFIG, store=url) as other:
            assert alone(other).leading
            assert other.record(self.data, 1 << 50)

    def model(self, done: list[tuple[int, bytes]]) -> SonaEngine:
        """What has learned this first and then those messages."""
        model = model_of([(1 << 50, self.data)])
        for sequence, data in done:
            teach(model, sequence, data)
        return model


@pytest.mark.parametrize("saved", [0, 4])
def test_a_consumer_whose_learner_was_replaced_says_so_and_its_records_are_read_again(
    saved: int, url: str, rng: np.random.Generator
) -> None:
    between, ring = Between(rng), FakeRing()
    engine = SonaEngine(CONFIG, store=url)
    journal = alone(engine)
    consumer = Consumer(engine, ring)
    first = [(ring.push(data), data) for data in (trajectory(rng, DIM) for _ in range(saved))]
    if saved:
        assert consumer.take(64) == saved
        consumer.save()
        ring.release(ring.mark())
    second = [(ring.push(data), data) for data in (trajectory(rng, DIM) for _ in range(5))]
    second.append((ring.push(again := feedback(second[0][0], 0.25)), again))
    assert consumer.take(4) == 4
    between.lead(url, engine)
    with pytest.raises(SonaStoreError, match="lost"):
        journal.save()
    journal.poll()
    assert journal.leading
    for call in (lambda: consumer.take(64), consumer.save):
        with pytest.raises(LearnerReplaced, match="another process led"):
            call()
    engine.close()
    with SonaEngine(CONFIG, store=url) as engine:
        consumer = Consumer(engine, ring.reopen())
        assert consumer.take(64) == 6
        consumer.save()
        model = model_of([*first, (1 << 50, between.data)])
        for sequence, data in second:
            teach(model, sequence, data)
        assert learned(engine) == learned(model)
        assert engine.store is not None
        assert sum(1 for _ in engine.store.trajectories()) == saved + 6


class OnServer:
    """A sidecar in a thread, on a store object whose lease a test may cut."""

    def __init__(self, directory: Path, store: Store, save_every: float) -> None:
        config = SidecarConfig(engine=CONFIG, save_every=save_every, cycles=False)
        self.ring = SharedRing(directory / "ring", "producer", 1 << 18)
        self.sidecar = Sidecar(directory / "ring", store=store, weights=directory / "weights", config=config)
        self.failed: list[BaseException] = []
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        wait_for(lambda: self.sidecar._open is not None)

    def _run(self) -> None:
        try:
            self.sidecar.run()
        except BaseException as error:
            self.failed.append(error)

    @property
    def engine(self) -> SonaEngine:
        assert self.sidecar._open is not None
        return self.sidecar._open.engine

    def until(self, count: int) -> None:
        wait_for(lambda: self.failed or self.count >= count)
        assert self.failed == []

    @property
    def count(self) -> int:
        report = self.sidecar.report()
        return int(report["trajectories"] + report["feedback"])

    def end(self) -> None:
        self.sidecar.stop()
        self.thread.join(60)
        assert not self.thread.is_alive()


def test_a_sidecar_goes_on_where_another_led_in_between(tmp_path: Path, url: str, rng: np.random.Generator) -> None:
    between = Between(rng)
    with open_store(url) as store:
        running = OnServer(tmp_path, store, save_every=3600.0)
        try:
            done = messages(rng, running.ring, 20, [])
            running.until(20)
            journal = running.engine.journal
            assert journal is not None
            journal.pause()
            between.lead(url, running.engine)
            journal.resume()
            running.until(40)
            done += messages(rng, running.ring, 10, [])
            running.until(50)
        finally:
            running.end()
        assert running.failed == []
        assert running.ring.used == 0
    with SonaEngine(CONFIG, store=url) as engine:
        assert learned(engine) == learned(between.model(done))


def test_a_sidecar_that_loses_its_lease_to_nobody_learns_on_and_saves(tmp_path: Path, url: str, rng: np.random.Generator) -> None:
    with open_store(url) as store:
        running = OnServer(tmp_path, store, save_every=0.02)
        try:
            done: list[tuple[int, bytes]] = []
            for n in range(1, 6):
                done += messages(rng, running.ring, 20, [sequence for sequence, data in done if data[:4] != b"SFBK"])
                cut_lease(running.engine)
                running.until(20 * n)
            wait_for(lambda: running.ring.used == 0)
        finally:
            running.end()
        assert running.failed == []
    with SonaEngine(CONFIG, store=url) as engine:
        assert learned(engine) == learned(model_of(done))


def test_a_sidecar_ends_where_another_goes_on_to_lead_and_the_ring_keeps_what_is_not_saved(
    tmp_path: Path, url: str, rng: np.random.Generator
) -> None:
    with open_store(url) as store:
        running = OnServer(tmp_path, store, save_every=0.02)
        try:
            journal = running.engine.journal
            assert journal is not None
            journal.pause()
            cut_lease(running.engine)
            with SonaEngine(CONFIG, store=url) as other:
                assert alone(other).leading
                done = messages(rng, running.ring, 20, [])
                running.until(20)
                assert other.record(trajectory(rng, DIM), 1 << 50)
                other.flush()
                journal.resume()
                wait_for(lambda: running.failed)
                assert isinstance(running.failed[0], SonaStoreError)
                kept = learned(other)
        finally:
            running.end()
        assert running.ring.used > 0
        assert done
        with SonaEngine(CONFIG, store=url) as engine:
            assert learned(engine) == kept
