"""The recipes of docs/serving.md under real servers: any worker takes a reward, a killed one loses nothing that it acknowledged."""

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from postgres import Server

import sona
from sona import Router, open_store

ROOT = Path(__file__).parents[1]
PATIENCE = 60
X = [1.0] * 8


def block(of: str) -> str:
    """The file of that name in the page; the application is the one without a name."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/serving.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (found,) = (text for text in blocks if (text.startswith(f"# {of}\n") if of else not text.startswith("# ")))
    return str(found)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(port: int, path: str, body: object = None) -> tuple[int, Any]:
    """Status and answer, over a connection of its own, so that any worker may take it."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        client.request(
            "GET" if body is None else "POST", path, None if body is None else json.dumps(body), {"Content-Type": "application/json"}
        )
        answer = client.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        client.close()


def until(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if found := condition():
                return found
        time.sleep(0.02)
    raise AssertionError("it does not happen")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., tuple[int, "subprocess.Popen[bytes]"]]]:
    """Start a server of the command line beside the files of the page; its port, and its process, which ends with the test."""
    for name in ("app.py", "application.py", "gunicorn.conf.py"):
        (tmp_path / name).write_text(block("" if name == "app.py" else name), encoding="utf-8")
    started: list[subprocess.Popen[bytes]] = []

    def run(store: object, module: str, *options: str) -> tuple[int, "subprocess.Popen[bytes]"]:
        port = free_port()
        path = os.pathsep.join([str(Path(sona.__file__).parents[1]), str(tmp_path)])
        command = [sys.executable, "-m", module, *(option.format(port=port) for option in options)]
        with open(tmp_path / "log", "ab") as log:
            environment = {**os.environ, "PYTHONPATH": path, "SONA_STORE": str(store), "OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True)
        started.append(process)
        return port, process

    yield run
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def workers(port: int, count: int, path: str = "/health", body: object = None) -> set[int]:
    """Ids of that many workers, once all of them answer."""
    seen: set[int] = set()

    def all_seen() -> bool:
        seen.add(ask(port, path, body)[1]["worker"])
        return len(seen) == count

    until(all_seen)
    return seen


def test_the_application_of_the_page_routes_learns_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi")
    pytest.importorskip("prometheus_client")
    monkeypatch.setenv("SONA_STORE", str(tmp_path / "s.db"))
    names: dict[str, Any] = {"__name__": "app"}
    exec(compile(block(""), "app.py", "exec"), names)
    app, found = names["app"], []

    async def call(method: str, path: str, body: object = None) -> tuple[int, Any]:
        sent: list[dict[str, Any]] = []
        given = [{"type": "http.request", "body": b"" if body is None else json.dumps(body).encode()}, {"type": "http.disconnect"}]

        async def receive() -> dict[str, Any]:
            return given.pop(0)

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b"", "app": app}
        await app(scope, receive, send)
        text = b"".join(message.get("body", b"") for message in sent).decode()
        return sent[0]["status"], text if path == "/metrics" else json.loads(text)

    async def serve() -> None:
        async with app.router.lifespan_context(app):
            status, decision = await call("POST", "/route", {"x": X})
            assert status == 200
            assert decision["arm"] in ("small", "large")
            found.append(await call("POST", "/feedback", {"id": decision["id"], "reward": 1.0}))
            found.append(await call("POST", "/feedback", {"id": decision["id"], "reward": 2.0}))
            found.append(await call("POST", "/route", {"x": [1.0]}))
            found.append(await call("POST", "/feedback", {"id": "77", "reward": 1.0}))
            found.append(await call("POST", "/feedback", {"id": "seven", "reward": 1.0}))
            found.append(await call("GET", "/health"))
            metrics = (await call("GET", "/metrics"))[1]
            assert f'sona_learned_total{{worker="{os.getpid()}"}} 1.0' in metrics

            def full(*_: object) -> int:
                raise sona.SonaStoreError("the disk is full")

            with monkeypatch.context() as patch:
                patch.setattr(app.state.router.engine.store, "append", full)
                found.append(await call("POST", "/feedback", {"id": decision["id"], "reward": 0.0}))
                assert (await call("GET", "/health"))[0] == 200

    asyncio.run(serve())
    assert [status for status, _ in found] == [200, 422, 422, 404, 422, 200, 503]
    assert found[0][1]["durable"] is True
    assert found[5][1]["leading"] is True
    assert "the disk is full" in found[6][1]["detail"]
    with open_store(tmp_path / "s.db") as store:
        assert [reward for _, reward in store.decisions()] == [0.0]  # the last one, after the disk had room again


@pytest.mark.slow
def test_workers_on_a_server_lose_nothing_acknowledged_when_one_is_killed(
    postgres_server: Server, tmp_path: Path, start: Callable[..., tuple[int, "subprocess.Popen[bytes]"]]
) -> None:
    """Clients route and reward, each reward to whichever worker takes it; the learning worker and another one are killed meanwhile."""
    for name in ("fastapi", "uvicorn", "prometheus_client"):
        pytest.importorskip(name)
    url = postgres_server.url()
    port, process = start(url, "uvicorn", "app:app", "--workers", "3", "--port", "{port}", "--timeout-graceful-shutdown", "20")
    first = workers(port, 3)
    stop, acknowledged, elsewhere, failures, statuses = threading.Event(), {}, [], [], []

    def client(seed: int) -> None:
        rng = np.random.default_rng(seed)
        while not stop.is_set():
            try:
                status, decision = ask(port, "/route", {"x": rng.standard_normal(8).tolist()})
                assert status == 200, decision
                reward = float(decision["arm"] == "large")
                status, answer = ask(port, "/feedback", {"id": decision["id"], "reward": reward})
                statuses.append(status)
                if status == 200:
                    acknowledged[int(decision["id"])] = reward
                    elsewhere.append(answer["worker"] != decision["worker"])
                else:
                    assert status == 404, answer  # of a worker that was killed within 0.1 s
            except (OSError, http.client.HTTPException):  # its worker is gone
                failures.append(time.monotonic())
            except BaseException as error:
                failures.append(error)
                raise

    clients = [threading.Thread(target=client, args=(seed,)) for seed in range(4)]
    for each in clients:
        each.start()

    def more() -> None:
        before = len(acknowledged)
        until(lambda: len(acknowledged) > before + 50)

    killed = []
    for leading in (True, False):
        more()
        seen = until(lambda leading=leading: next((h for _, h in [ask(port, "/health")] if h["leading"] is leading), None))
        os.kill(seen["worker"], signal.SIGKILL)
        killed.append(seen["worker"])
        workers(port, 3)  # the supervisor starts another one
    more()
    stop.set()
    for each in clients:
        each.join()
    assert not [failure for failure in failures if not isinstance(failure, float)]
    until(lambda: any(ask(port, "/health")[1]["leading"] for _ in range(20)))  # one learns again
    assert workers(port, 3) >= first - set(killed)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0
    with open_store(url) as store:
        kept = {row.id: reward for row, reward in store.decisions() if reward is not None}
    assert len(acknowledged) > 150
    assert sum(elsewhere) > len(elsewhere) / 3
    assert {id: kept.get(id) for id in acknowledged} == acknowledged
    assert statuses.count(404) <= 40, statuses.count(404)
    with Router(["small", "large"], dim=8, store=url) as router:  # and all of it is learned
        assert router.predict(np.eye(8)).tolist() == [1] * 8


@pytest.mark.slow
@pytest.mark.parametrize("preload", [True, False])
def test_gunicorn_with_a_router_made_in_each_worker(
    preload: bool, tmp_path: Path, start: Callable[..., tuple[int, "subprocess.Popen[bytes]"]]
) -> None:
    pytest.importorskip("gunicorn")
    (tmp_path / "application.py").write_text(
        block("application.py").replace('"arm": decision.arm}', '"arm": decision.arm, "worker": __import__("os").getpid()}')
    )
    configuration = (tmp_path / "gunicorn.conf.py").read_text()
    (tmp_path / "gunicorn.conf.py").write_text(configuration.replace("preload_app = True", f"preload_app = {preload}"))
    port, process = start(tmp_path / "s.db", "gunicorn", "application:application", "--bind", "127.0.0.1:{port}")
    workers(port, 2, "/route", {"x": X})
    rewarded = []
    for number in range(24):
        status, decision = ask(port, "/route", {"x": X})
        assert status == 200
        if number % 6 == 0:
            time.sleep(0.15)  # then any worker may take it
        status, answer = ask(port, "/feedback", {"id": decision["id"], "reward": 1.0})
        assert status == 200
        if answer["durable"]:
            rewarded.append(int(decision["id"]))
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0
    assert len(rewarded) >= 4
    with open_store(tmp_path / "s.db") as store:
        assert store.integrity() == []
        kept = {row.id: reward for row, reward in store.decisions()}
    assert len(kept) >= 24 + 2  # what was not rewarded as well: the workers wrote it when they ended
    assert {id for id, reward in kept.items() if reward == 1.0} == set(rewarded)


@pytest.mark.slow
@pytest.mark.parametrize("worker", ["asgi", "uvicorn_worker.UvicornWorker"])
def test_the_lifespan_makes_the_router_in_each_worker_of_gunicorn(
    worker: str, tmp_path: Path, start: Callable[..., tuple[int, "subprocess.Popen[bytes]"]]
) -> None:
    for name in ("fastapi", "prometheus_client", "gunicorn", "gunicorn.workers.gasgi" if worker == "asgi" else "uvicorn_worker"):
        pytest.importorskip(name)
    (tmp_path / "gunicorn.conf.py").unlink()
    options = ("app:app", "--bind", "127.0.0.1:{port}", "--workers", "2", "--worker-class", worker, "--preload")
    port, process = start(tmp_path / "s.db", "gunicorn", *options)
    workers(port, 2)
    acknowledged, elsewhere = set(), 0
    for _ in range(20):
        status, decision = ask(port, "/route", {"x": X})
        assert status == 200
        status, answer = ask(port, "/feedback", {"id": decision["id"], "reward": 1.0})
        assert status == 200
        acknowledged.add(int(decision["id"]))
        elsewhere += answer["worker"] != decision["worker"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0
    assert elsewhere > 0
    with open_store(tmp_path / "s.db") as store:
        assert {row.id for row, reward in store.decisions() if reward == 1.0} == acknowledged


def test_gunicorn_says_that_a_router_was_made_before_the_fork(
    tmp_path: Path, start: Callable[..., tuple[int, "subprocess.Popen[bytes]"]]
) -> None:
    pytest.importorskip("gunicorn")
    made = 'import os\nimport sona\napplication.router = sona.Router(["small", "large"], dim=8, store=os.environ["SONA_STORE"])\n'
    (tmp_path / "application.py").write_text(block("application.py") + made)
    (tmp_path / "gunicorn.conf.py").unlink()
    options = ("application:application", "--bind", "127.0.0.1:{port}", "--workers", "2")
    port, process = start(tmp_path / "s.db", "gunicorn", *options, "--preload")
    client = until(lambda: socket.create_connection(("127.0.0.1", port)))
    client.close()
    for path, body in (("/route", {"x": X}), ("/feedback", {"id": "1", "reward": 1.0})):
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        client.request("POST", path, json.dumps(body))
        assert client.getresponse().status == 500
        client.close()
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0
    log = (tmp_path / "log").read_text()
    (said,) = re.findall(r"^```text\n(.*?)^```$", (ROOT / "docs/serving.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert log.count(said.strip()) == 2, log
    with open_store(tmp_path / "s.db") as store:
        assert store.count() == 0
