"""Promises of the dashboard's server: who is answered, what is told, and that nothing changes but by its one button."""

import http.client
import json
import re
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import StartPython
from stores import Place
from test_versions import DIM, factors, make_router, serve, served, version

from sona import Router, SonaEngine
from sona.cli import main
from sona.config import SonaConfig
from sona.errors import SonaStoreError, SonaValueError
from sona.loops import patterns as kept_patterns
from sona.loops.journal import encode_state
from sona.report.dashboard import Board, Dashboard
from sona.report.dashboard.data import PARTS, plain
from sona.report.dashboard.endpoint import Endpoint, samples
from sona.report.dashboard.learned import plane

Answer = tuple[int, dict[str, str], Any]
HOSTILE = '</script><img src=x onerror="alert(1)">'


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which everything has happened: rewards, a background and a deep cycle, versions, a hostile name."""
    path = tmp_path_factory.mktemp("store") / "sona.db"
    rng = np.random.default_rng(0)
    with Router([HOSTILE, "b", "c"], dim=DIM, store=path, seed=1) as router:
        for x in rng.normal(size=(300, DIM)):
            d = router.route(x)
            router.feedback(d.id, float(d.arm == "b"))
        router.background_learn()
        router.engine.memory.add(rng.normal(size=DIM), {"text": HOSTILE})
        router.deep_learn()
        router.engine._service.versions.add(version(1, reason=HOSTILE, metrics={"z": float("nan")}))
        router.engine._service.versions.add(version(2))
    return path


@pytest.fixture(scope="module")
def dashboard(path: Path) -> Iterator[Dashboard]:
    with Dashboard(path) as running:
        yield running


def token(dashboard: Dashboard) -> str:
    return dashboard.url.partition("#token=")[2]


def ask(dashboard: Dashboard, target: str, method: str = "GET", body: Any = None, **headers: str | None) -> Answer:
    """Status, headers by lower-case name, and what came; `headers` over those that the page sends, None for none of that name."""
    sent: dict[str, str | None] = {"Host": f"127.0.0.1:{dashboard.port}", "X-Sona-Token": token(dashboard)}
    if method == "POST":
        sent |= {"Origin": f"http://127.0.0.1:{dashboard.port}", "Sec-Fetch-Site": "same-origin", "Content-Type": "application/json"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection("127.0.0.1", dashboard.port, timeout=30)
    connection.putrequest(method, target, skip_host=True)
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    for name, value in sent.items():
        if value is not None:
            connection.putheader(name, value)
    if method == "POST" and "Content-Length" not in sent:
        connection.putheader("Content-Length", str(len(data)))
    connection.endheaders(data)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    kind = answer.headers.get_content_type()
    found = {name.lower(): value for name, value in answer.getheaders()}
    return answer.status, found, json.loads(content) if kind == "application/json" else content


# ---- who is answered ----


def test_it_listens_on_the_loopback_alone(dashboard: Dashboard) -> None:
    assert dashboard._server.socket.getsockname() == ("127.0.0.1", dashboard.port)
    own = socket.gethostbyname(socket.gethostname())
    if not own.startswith("127."):
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((own, dashboard.port), timeout=5)


@pytest.mark.parametrize("target", [*(f"/api/{part}" for part in PARTS), "/api/events", "/api/nothing"])
@pytest.mark.parametrize("given", [None, "", "wrong", "é"])
def test_nothing_of_the_store_is_told_without_the_token(dashboard: Dashboard, target: str, given: str | None) -> None:
    status, _, content = ask(dashboard, target, X_Sona_Token=given)
    assert (status, list(content)) == (403, ["error"])
    assert ask(dashboard, f"{target}?token={token(dashboard)}", X_Sona_Token=None)[0] == 403
    assert ask(dashboard, target, X_Sona_Token=None, Cookie=f"sona-token={token(dashboard)}")[0] == 403


@pytest.mark.parametrize("target", ["/", "/app.js", "/api/overview", "/nothing"])
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1:{port}.evil.example", "", None]
)
def test_another_host_name_is_refused(dashboard: Dashboard, target: str, host: str | None) -> None:
    """A name that somebody's DNS points to 127.0.0.1 would make the browser think that it is somebody's page."""
    name = host if host is None else host.format(port=dashboard.port)
    assert ask(dashboard, target, Host=name)[0] == 421
    assert ask(dashboard, "/api/overview", Host=f"localhost:{dashboard.port}")[0] == 200


def test_every_answer_forbids_what_the_page_does_not_need(dashboard: Dashboard) -> None:
    for target in ("/", "/app.js", "/style.css", "/icon.svg", "/api/overview", "/nothing", "/api/nothing"):
        _, headers, _ = ask(dashboard, target)
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
        assert "unsafe" not in policy
        assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")
        assert "access-control-allow-origin" not in headers
        assert headers["server"].strip() == "sona"


def test_the_page_is_whole_and_comes_from_here(dashboard: Dashboard) -> None:
    status, headers, page = ask(dashboard, "/", X_Sona_Token=None)
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    text = {"/": page.decode()}
    wanted = set(re.findall(r'(?:src|href)="([^"]+)"', text["/"]))
    while new := wanted - text.keys():
        for target in new:
            status, headers, content = ask(dashboard, target)
            assert status == 200
            text[target] = content.decode()
            wanted |= {f"/{name}" for name in re.findall(r'from "\./([^"]+)"', text[target])}
    assert {
        f"/{name}" for name in ("app.js", "api.js", "chart.js", "map.js", "panels.js", "dom.js", "style.css", "icon.svg")
    } <= text.keys()
    for target, content in text.items():
        assert set(re.findall(r"https?://[^\s\"'<>)]+", content)) <= {"http://www.w3.org/2000/svg", "http://127.0.0.1:PORT/metrics"}, target
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", content), target
        assert not re.search(r"<[^>]+ (?:style|on\w+)=", content), target


@pytest.mark.parametrize(
    "target", ["/index.html", "/../data.py", "/%2e%2e/data.py", "/page/app.js", "//etc/passwd", "/server.py", "/api/", "/api/_state"]
)
def test_nothing_else_is_served(dashboard: Dashboard, target: str) -> None:
    assert ask(dashboard, target)[0] == 404


@pytest.mark.parametrize("method", ["HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_other_methods_are_not_understood(dashboard: Dashboard, method: str) -> None:
    assert ask(dashboard, "/api/rollback", method)[0] == 501


# ---- the button ----


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"X_Sona_Token": None}, 403),
        ({"X_Sona_Token": "wrong"}, 403),
        ({"Origin": None}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"Content_Type": "text/plain"}, 403),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 403),
        ({"Host": "evil.example"}, 421),
        ({"Content_Length": "99999"}, 400),
        ({"Content_Length": "-1"}, 400),
        ({"Content_Length": "x"}, 400),
    ],
)
def test_a_rollback_of_another_site_is_refused(dashboard: Dashboard, path: Path, headers: dict[str, str | None], status: int) -> None:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    assert ask(dashboard, "/api/rollback", "POST", {"version": 2}, **given)[0] == status
    assert raw_published(path) == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"2", b'{"version": "2"}', b'{"version": true}', b'{"version": 2.0}', b"{}", b"\xff"])
def test_a_rollback_to_what_is_no_number_is_refused(dashboard: Dashboard, path: Path, body: bytes) -> None:
    status, _, content = ask(dashboard, "/api/rollback", "POST", body)
    assert (status, content) == (400, {"error": 'expected {"version": its number}'})
    assert ask(dashboard, "/api/rollback", "GET")[0] == 404
    assert ask(dashboard, "/api/overview", "POST", {"version": 2})[0] == 404
    assert raw_published(path) == []


def raw_published(path: Path) -> list[int]:
    with sqlite3.connect(path) as conn:
        found = [row[0] for row in conn.execute("SELECT number FROM versions WHERE published")]
    conn.close()
    return found


def test_a_version_that_is_not_there_is_an_error(dashboard: Dashboard) -> None:
    status, _, content = ask(dashboard, "/api/rollback", "POST", {"version": 77})
    assert status == 400
    assert "expected one of default@1-" in content["error"]


def test_a_rollback_where_nobody_learns_is_done_at_once(tmp_path: Path) -> None:
    with make_router(tmp_path / "s.db") as router:
        serve(router)
        router.engine._service.versions.add(version(1))
    with Dashboard(tmp_path / "s.db") as own:
        status, _, content = ask(own, "/api/rollback", "POST", {"version": 1})
        assert (status, content["done"], content["number"]) == (200, True, 1)
        listed = ask(own, "/api/versions")[2]
        assert [(v["number"], v["published"]) for v in listed["versions"]] == [(2, False), (1, True)]
    with make_router(tmp_path / "s.db") as router:
        assert served(router) == factors(1).to_bytes()


def test_a_rollback_reaches_the_process_that_learns(tmp_path: Path) -> None:
    with make_router(tmp_path / "s.db") as router, Dashboard(tmp_path / "s.db") as own:
        serve(router)
        router.engine._service.versions.add(version(1))
        router.flush()
        router.engine.journal.save()  # type: ignore[union-attr]
        _, _, content = ask(own, "/api/rollback", "POST", {"version": 1})
        assert content["done"] is False
        assert ask(own, "/api/versions")[2]["asked"] == 1
        assert ask(own, "/api/overview")[2]["asked"] == 1
        router.engine.journal.poll()  # type: ignore[union-attr]
        router.tick()
        assert served(router) == factors(1).to_bytes()
        listed = ask(own, "/api/versions")[2]
        assert listed["asked"] is None
        assert [v["number"] for v in listed["versions"] if v["published"]] == [1]


def test_a_wish_that_nobody_took_is_done_when_nobody_learns_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sona.report.dashboard.data.PATIENCE", 0.0)
    with Dashboard(_with_version(tmp_path)) as own:
        router = make_router(tmp_path / "s.db")
        assert ask(own, "/api/rollback", "POST", {"version": 1})[2]["done"] is False
        own.board.grant()
        assert ask(own, "/api/versions")[2]["asked"] == 1
        router.engine.journal._following = False  # type: ignore[union-attr]  # it never looks
        router.close()
        own.board.grant()
        assert ask(own, "/api/versions")[2]["asked"] is None
        assert raw_published(tmp_path / "s.db") == [1]
        own.board._store.ask_publish("default", 77)
        own.board.grant()
        assert ask(own, "/api/versions")[2]["asked"] == -77


def _with_version(tmp_path: Path) -> Path:
    with make_router(tmp_path / "s.db") as router:
        serve(router)
        router.engine._service.versions.add(version(1))
    return tmp_path / "s.db"


# ---- what is told ----


def test_the_overview_is_that_of_the_store(dashboard: Dashboard) -> None:
    _, _, told = ask(dashboard, "/api/overview")
    assert (told["decisions"], told["rewards"], told["arms"]) == (300, 300, 3)
    assert told["state"]["dim"] == DIM
    assert (told["alarms"], told["alarm_times"], told["names"], told["damage"]) == (0, [], ["default"], None)


def test_rewards_and_outcomes_add_up(dashboard: Dashboard) -> None:
    told = ask(dashboard, "/api/rewards")[2]["rewards"]
    assert len(told) <= 120
    assert sum(each["count"] for each in told) == 300
    outcomes = ask(dashboard, "/api/outcomes")[2]
    arms = {each["arm"]: each for each in outcomes["arms"]["listed"]}
    assert arms.keys() == {HOSTILE, "b", "c"}
    assert sum(each["count"] for each in arms.values()) == outcomes["count"] == 300
    assert (arms["b"]["mean"], arms["c"]["mean"]) == (1.0, 0.0)
    total = sum(each["mean"] * each["count"] for each in arms.values())
    assert total == pytest.approx(sum(each["mean"] * each["count"] for each in told))
    assert sum(bar["count"] for bar in outcomes["delay"]["bars"]) == 300
    for newest in range(1, 12):
        assert ask(dashboard, f"/api/outcomes?newest={newest}")[2]["count"] == newest
    assert len([part for part, _ in dashboard.board._cache if part == "outcomes"]) == 4  # so many answers are kept


def test_regret_is_what_the_frozen_model_would_have_earned_more(tmp_path: Path) -> None:
    """The frozen model is right about a share of requests that is known, and the band holds the true regret."""
    rng = np.random.default_rng(4)
    arms = np.eye(2, 4, dtype=np.float32)
    truth = 0.0
    with Router(arms, store=tmp_path / "s.db", seed=3) as router:
        for _ in range(4000):
            x = np.concatenate([rng.normal(size=2), rng.normal(size=2)]).astype(np.float32)
            right = int(x[2] > 0) if rng.random() < 0.9 else int(rng.integers(2))  # the frozen model sees x[0] and x[1] only
            d = router.route(x)
            reward = float(d.index == right)
            router.feedback(d.id, reward)
            truth += float(int(x[1] > x[0]) == right) - reward
    with Board(tmp_path / "s.db") as board:
        told = board.part("outcomes")["regret"]
    last = told["points"][-1]
    assert last["count"] == 4000
    assert told["reason"] is None
    assert last["low"] < truth < last["high"] < 0
    assert told["frozen"]["low"] < 0.5 < told["frozen"]["high"]
    assert told["frozen"]["served"] > 0.7


@pytest.mark.parametrize("options", [{}, {"explore": "softmax"}, {"explore": "thompson"}, {"pool": True}, {"retrieval": 50}])
def test_regret_is_not_estimated_where_the_frozen_model_was_never_drawn(tmp_path: Path, options: dict[str, Any]) -> None:
    with make_router(tmp_path / "s.db", guard=False, **options) as router:
        serve(router, 300)
    with Board(tmp_path / "s.db") as board:
        told = board.part("outcomes")["regret"]
    assert (told["points"], told["frozen"]) == ([], None)
    assert told["reason"]


def test_patterns_and_memory_are_what_was_kept(dashboard: Dashboard, path: Path) -> None:
    patterns, memory = ask(dashboard, "/api/patterns")[2], ask(dashboard, "/api/memory")[2]
    with make_router(path) as router:
        bank, graph, dreams = router.engine.patterns.bank.patterns, router.engine.memory.graph, router.engine.memory.dreams
        assert patterns["count"] == len(patterns["points"]) == len(bank) > 1
        assert {row[0]: (row[3], pytest.approx(row[4])) for row in patterns["points"]} == {
            p.id: (p.cluster_size, p.avg_quality) for p in bank
        }
        assert sum(memory["counts"]["nodes"].values()) == len(graph)
        assert sum(memory["counts"]["edges"].values()) == int(graph.degree.sum()) // 2
        known = set(graph.ids.tolist())
        assert {node["id"] for node in memory["nodes"]} <= known
        assert all({edge["from"], edge["to"]} <= known for edge in memory["edges"])
        assert [dream["nodes"] for dream in memory["dreams"]] == [dream["nodes"] for dream in dreams]
        assert len(dreams) == 8
        assert {node["id"] for node in memory["nodes"]} >= set(dreams[0]["nodes"])
    assert memory["history"][-1]["cycle"] == 1
    assert all(abs(value) <= 1 for row in patterns["points"] for value in row[1:3])
    assert patterns["listed"][0]["size"] == max(row[3] for row in patterns["points"])


def test_versions_are_told_newest_first_and_as_plain_json(dashboard: Dashboard) -> None:
    told = ask(dashboard, "/api/versions")[2]
    assert [v["number"] for v in told["versions"]] == sorted((v["number"] for v in told["versions"]), reverse=True)
    hostile = next(v for v in told["versions"] if v["reason"] == HOSTILE)
    assert hostile["metrics"] == {"z": None}
    assert plain({"a": [float("inf"), 2**60, True, (1, "x")]}) == {"a": [None, str(2**60), True, [1, "x"]]}


@pytest.mark.parametrize("query", ["newest=0", "newest=-1", "newest=x", "newest=1e3", "newest=1000001", "newest=", f"newest={'9' * 400}"])
def test_a_range_that_is_none_is_refused(dashboard: Dashboard, query: str) -> None:
    status, _, content = ask(dashboard, f"/api/rewards?{query}".encode().decode("latin-1"))
    assert status == (200 if query == "newest=" else 400)
    assert query == "newest=" or "newest: expected" in content["error"]


def test_an_empty_store_has_empty_parts(place: Place) -> None:
    place.open().close()
    with Dashboard(place.where) as own:
        for part in PARTS:
            assert ask(own, f"/api/{part}")[0] == 200
        assert ask(own, "/api/overview")[2]["state"] is None


def test_a_server_is_read_as_a_file_is(place: Place) -> None:
    with place.open() as store, make_router(store) as router:
        serve(router, 120)
        router.background_learn()
        router.deep_learn()
        router.engine._service.versions.add(version(1))
    with Dashboard(place.where) as own:
        assert ask(own, "/api/overview")[2]["decisions"] == 120
        assert sum(each["count"] for each in ask(own, "/api/rewards")[2]["rewards"]) == 120
        assert ask(own, "/api/outcomes")[2]["count"] == 120
        assert ask(own, "/api/patterns")[2]["count"] > 1
        assert ask(own, "/api/memory")[2]["history"]
        assert ask(own, "/api/rollback", "POST", {"version": 1})[2]["done"] is True
        assert "password" not in json.dumps(ask(own, "/api/overview")[2])


def test_trajectories_of_an_engine_are_shown_by_their_quality(tmp_path: Path) -> None:
    with SonaEngine(SonaConfig(hidden_dim=DIM), store=tmp_path / "s.db") as engine:
        for n in range(10):
            tid = engine.begin_trajectory(np.ones(DIM))
            engine.add_step(tid, activations=np.ones(DIM))
            engine.end_trajectory(tid, quality=n / 10)
    with Board(tmp_path / "s.db") as board:
        told = board.part("rewards")
        assert told["rewards"] == []
        assert [each["mean"] for each in told["trajectories"]] == pytest.approx([n / 10 for n in range(10)])


def test_what_is_damaged_is_said_and_the_rest_is_told(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "s.db"
    with sqlite3.connect(path) as source, sqlite3.connect(copy) as target:
        source.backup(target)
    source.close()
    target.execute("UPDATE state SET blob = substr(blob, 2)")
    target.execute("UPDATE versions SET reason = 'x'")
    target.commit()
    target.close()
    with Board(copy) as board:
        for part in ("overview", "versions", "patterns", "memory"):
            assert "checksum" in board.part(part)["damage"]
        assert board.part("overview")["decisions"] == 300
        board._store.put_state("default", encode_state({"other": np.zeros(1)}, {}), 0)
        board._store.put_state(kept_patterns.state_name("default"), encode_state({"other": np.zeros(1)}, {}), 0)
        assert "layer0.down" in board.part("overview")["damage"]
        assert "bank.patterns" in board.part("patterns")["damage"]


@pytest.mark.parametrize(("rows", "dim"), [(0, 3), (1, 3), (5, 1), (40, 3), (3, 40)])
def test_the_plane_holds_the_two_largest_components(rng: np.random.Generator, rows: int, dim: int) -> None:
    x = rng.normal(size=(rows, dim)) * (1 + np.arange(dim))
    at, share = plane(x)
    assert at.shape == (rows, 2)
    values = np.linalg.svd(x - x.mean(axis=0), compute_uv=False) ** 2 if rows else np.zeros(1)
    assert share == pytest.approx(values[:2].sum() / max(values.sum(), 1e-30), abs=1e-9)
    if rows > 2 and dim > 1:
        own = np.linalg.norm(at[:, None] - at[None], axis=2)
        assert np.allclose(own / own.max(), own / own.max())
        assert np.var(at[:, 0]) >= np.var(at[:, 1])
        assert np.array_equal(plane(x.copy())[0], at)


# ---- live ----


@contextmanager
def asked(dashboard: Dashboard, target: str, status: int = 200) -> Iterator[http.client.HTTPResponse]:
    """An answer that is still coming."""
    with closing(http.client.HTTPConnection("127.0.0.1", dashboard.port, timeout=20)) as connection:
        connection.request("GET", target, headers={"X-Sona-Token": token(dashboard)})
        with closing(connection.getresponse()) as answer:
            assert answer.status == status
            yield answer


def next_event(answer: http.client.HTTPResponse) -> tuple[str, Any]:
    name = answer.readline().decode().removeprefix("event: ").strip()
    data = answer.readline().decode().removeprefix("data: ")
    assert answer.readline() == b"\n"
    return name, json.loads(data)


def test_what_is_new_is_told_within_seconds_and_the_stream_ends_with_the_server(tmp_path: Path) -> None:
    with make_router(tmp_path / "s.db") as router, Dashboard(tmp_path / "s.db") as own, asked(own, "/api/events") as stream:
        assert stream.headers.get_content_type() == "text/event-stream"
        name, before = next_event(stream)
        assert (name, before.keys()) == ("tags", set(PARTS) - {"processes"})
        began = time.monotonic()
        serve(router, 5)
        router.flush()
        name, after = next_event(stream)
        assert time.monotonic() - began < 5
        assert {part for part in before if before[part] != after[part]} >= {"overview", "rewards", "outcomes"}
        assert ask(own, "/api/rewards")[2]["tag"] == after["rewards"]
        own.close()
        assert stream.read() == b""


def test_a_store_that_cannot_be_read_is_told_and_the_stream_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sona.report.dashboard.server.POLL", 0.01)
    make_router(tmp_path / "s.db").close()
    with Dashboard(tmp_path / "s.db") as own, asked(own, "/api/events") as stream:
        assert next_event(stream)[0] == "tags"
        with monkeypatch.context() as patched:

            def gone(*_: Any) -> None:
                raise SonaStoreError("cannot\nreach")

            patched.setattr("sona.store.sqlite.SqliteStore.marks", gone)
            assert next_event(stream) == ("trouble", {"error": "cannot\\nreach"})
            status, _, content = ask(own, "/api/overview")
            assert (status, content) == (503, {"error": "cannot\\nreach"})
        assert next_event(stream)[0] == "tags"


def test_too_many_streams_are_refused_and_those_that_end_make_room(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sona.report.dashboard.server.STREAMS", 1)
    monkeypatch.setattr("sona.report.dashboard.server.POLL", 0.01)
    monkeypatch.setattr("sona.report.dashboard.server.ALIVE", 0.0)
    with Dashboard(path) as own:
        with asked(own, "/api/events") as first:
            next_event(first)
            assert ask(own, "/api/events")[0] == 503
        give_up = time.monotonic() + 10
        while not own._server.streams.acquire(blocking=False):  # as the next page does
            assert time.monotonic() < give_up
            time.sleep(0.01)


# ---- processes ----

EXPOSITION = """# HELP sona_requests_total Requests
sona_requests_total{router="a \\"b\\" \\\\ }"} 12.0
sona_store_dropped_total 0.0
python_info{version="3"} 1.0
sona_route_seconds_bucket{le="1e-06",router="x"} 2.0
sona_route_seconds_bucket{le="+Inf",router="x"} 5.0
sona_route_seconds_bucket{le="1e-05",router="x"} 4.0
sona_route_seconds_count{router="x"} 5.0
sona_route_seconds_sum{router="x"} 0.1
sona_broken{ 1
sona_broken x
"""


def test_an_exposition_is_read() -> None:
    found = samples(EXPOSITION)
    assert found["values"] == [["sona_requests_total", 'router a "b" \\ }', 12.0], ["sona_store_dropped_total", "", 0.0]]
    assert found["histograms"] == [{"name": "sona_route_seconds", "labels": "router x", "bars": [[1e-06, 2.0], [1e-05, 2.0], [None, 1.0]]}]


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/metrics",
        "https://127.0.0.1/",
        "file:///etc/passwd",
        "127.0.0.1:9",
        "http://u@127.0.0.1/",
        "http://[",
        "http://127.0.0.1:x/",
    ],
)
def test_an_endpoint_elsewhere_is_refused(url: str, path: Path) -> None:
    with pytest.raises(SonaValueError, match="metrics: expected http"):
        Endpoint(url)
    with pytest.raises(SonaValueError):
        Dashboard(path, metrics=[url])


def test_an_endpoint_that_does_not_answer_is_said(path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/metrics"
        with Dashboard(path, metrics=[url]) as own:
            (told,) = ask(own, "/api/processes")[2]["processes"]
            assert (told["url"], told["values"]) == (url, [])
            assert "cannot be read" in told["error"]
            (told,) = Board(path, metrics=[f"http://127.0.0.1:{own.port}/nothing"]).part("processes")["processes"]
            assert told["error"] == "expected status 200, got 404"


def test_latencies_and_drops_of_a_process_are_read_from_its_endpoint(path: Path) -> None:
    prometheus_client = pytest.importorskip("prometheus_client")
    from sona.ext.prometheus import Collector

    with make_router() as router:
        serve(router, 100)
        router.feedback(12345, 1.0)
        latency = router.stats()["latency"]
        registry = prometheus_client.CollectorRegistry()
        registry.register(Collector(router, labels={"router": "faq"}))
        server, thread = prometheus_client.start_http_server(0, "127.0.0.1", registry)
        try:
            with Board(path, metrics=[f"http://127.0.0.1:{server.server_port}/metrics"]) as board:
                (told,) = board.part("processes")["processes"]
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
    assert told["error"] is None
    assert ["sona_unknown_feedback_total", "router faq", 1.0] in told["values"]
    found = {each["name"]: each for each in told["histograms"]}
    assert found.keys() == {"sona_route_seconds", "sona_learn_seconds"}
    for name, every_16th in (("route", 6), ("learn", 7)):
        bars, timed = found[f"sona_{name}_seconds"]["bars"], latency[name]
        assert sum(count for _, count in bars) == timed["count"] == every_16th
        below = [0, *(count for _, count in timed["buckets"])]
        assert [count for _, count in bars] == [*np.diff(below).tolist(), timed["count"] - below[-1]]
        assert 0 < timed["seconds"] < 60
        assert [bound for bound, _ in timed["buckets"]] == [1e-9 * 2**n for n in range(8, 30)]


# ---- the command ----


def test_the_command_prints_the_address_serves_and_ends_on_ctrl_c(path: Path, start_python: StartPython) -> None:
    child = start_python("import sys; from sona.cli import main; sys.exit(main(sys.argv[1:]))", "dashboard", path)
    assert child.stdout is not None
    url = child.stdout.readline().strip()
    assert child.stdout.readline() == "Ctrl-C ends it\n"
    port, given = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/#token=([\w-]{43})", url).groups()  # type: ignore[union-attr]
    with closing(http.client.HTTPConnection("127.0.0.1", int(port), timeout=20)) as connection:
        connection.request("GET", "/api/overview", headers={"X-Sona-Token": given})
        assert json.loads(connection.getresponse().read())["decisions"] == 300
    child.send_signal(signal.SIGINT)
    output, errors = child.communicate(timeout=20)
    assert (child.returncode, output.strip(), errors) == (0, "", "")


def test_the_command_says_what_is_wrong_and_makes_nothing(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        ([str(tmp_path / "none.db")], "no such store"),
        ([str(path), "--namespace", "other"], "expected one of the namespaces default"),
        ([str(path), "--metrics", "http://example.com"], "metrics: expected http://"),
    ):
        assert main(["dashboard", *arguments]) == 1
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    with Dashboard(path) as other:
        assert main(["dashboard", str(path), "--port", str(other.port)]) == 1
        assert "in use" in capsys.readouterr().err


def test_looking_takes_no_lease_and_leaves_the_store_as_it_is(path: Path) -> None:
    def content() -> list[tuple[Any, ...]]:
        with sqlite3.connect(path) as conn:
            rows = [row for table in ("counters", "namespaces", "state", "versions") for row in conn.execute(f"SELECT * FROM {table}")]
        conn.close()
        return rows

    before = content()
    with Dashboard(path) as own:
        for part in PARTS:
            ask(own, f"/api/{part}")
        assert content() == before
        with make_router(path) as router:
            assert router.engine.journal is not None
            assert router.engine.journal.leading
