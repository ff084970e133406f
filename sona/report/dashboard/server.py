"""The page and its data, served to the machine that it is on."""

from __future__ import annotations

import hmac
import json
import os
import secrets
import threading
import time
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from sona.errors import SonaClosedError, SonaError, SonaValueError
from sona.report.dashboard.data import PARTS, Board
from sona.report.table import one_line

ADDRESS = "127.0.0.1"
POLL = 1.0  # s between looks at the store while a page is open
ALIVE = 15.0  # s after which a silent stream says that it is there
BODY = 1024  # bytes of a request's body, at most
STREAMS = 16  # pages that are kept up to date at once
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Dashboard:
    """
    A server of one store's page, on 127.0.0.1 and nowhere else.

    Parameters
    ----------
    where : path or URL
        Of a store that is there.
    namespace, name : str
        Of the learner.
    port : int
        0: one that is free.
    metrics : sequence of str
        Addresses of Prometheus endpoints on this machine: latencies and drops of processes, which a store does not know.

    Attributes
    ----------
    url : str
        With the token, without which nothing of the store is told: the page takes it out of the address bar.

    Raises
    ------
    SonaError
        As `Board`.
    OSError
        The port is taken.

    Notes
    -----
    The token is sent in a header of its own and never in a cookie, so that no other site can use it; requests by another name than
    127.0.0.1 or localhost, or from another origin, are refused.

    Thread-safety
    -------------
    Any thread. `serve` returns after `close`.
    """

    def __init__(
        self,
        where: str | os.PathLike[str],
        *,
        namespace: str = "default",
        name: str = "default",
        port: int = 0,
        metrics: Sequence[str] = (),
    ) -> None:
        self.board = Board(where, namespace=namespace, name=name, metrics=metrics)
        try:
            self._server = _Server((ADDRESS, port), self.board, secrets.token_urlsafe(32))
        except BaseException:
            self.board.close()
            raise
        self.port: int = self._server.server_address[1]
        self.url = f"http://{ADDRESS}:{self.port}/#token={self._server.token}"
        self._thread: threading.Thread | None = None

    def serve(self) -> None:
        """Answer until `close` is called, or KeyboardInterrupt comes."""
        self._server.serve_forever(poll_interval=0.1)

    def start(self) -> Self:
        """`serve`, in a thread of its own."""
        if self._thread is None:
            self._thread = threading.Thread(target=self.serve, name="sona-dashboard", daemon=True)
            self._thread.start()
        return self

    def close(self) -> None:
        """End streams, server and store; a second call does nothing."""
        self._server.ending.set()
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._thread = None
        self._server.server_close()
        self.board.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], board: Board, token: str) -> None:
        self.board, self.token = board, token
        self.ending = threading.Event()
        self.streams = threading.BoundedSemaphore(STREAMS)
        page = files("sona.report.dashboard") / "page"
        self.page = {f"/{file.name}": file.read_bytes() for file in page.iterdir() if file.name.rpartition(".")[2] in TYPES}
        self.page["/"] = self.page.pop("/index.html")
        super().__init__(address, _Handler)
        port = self.server_address[1]
        self.hosts = {f"{host}:{port}" for host in (ADDRESS, "localhost")}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of an answer is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = 60  # s that a connection may be silent
    server_version, sys_version = "sona", ""
    error_content_type = "text/plain; charset=utf-8"
    error_message_format = "%(message)s\n"

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        if not self._here():
            return
        if address.path in self.server.page:
            kind = TYPES["html" if address.path == "/" else address.path.rpartition(".")[2]]
            self._send(HTTPStatus.OK, self.server.page[address.path], f"{kind}; charset=utf-8")
        elif not address.path.startswith("/api/"):
            self._json(HTTPStatus.NOT_FOUND, {"error": "there is no such page"})
        elif self._known():
            part = address.path.removeprefix("/api/")
            if part == "events":
                self._events()
            elif part in PARTS:
                self._answer(lambda: self.server.board.part(part, _newest(address.query)))
            else:
                self._json(HTTPStatus.NOT_FOUND, {"error": "there is no such part"})

    def do_POST(self) -> None:
        self.close_connection = True  # whatever of the body is not read
        if not (self._here() and self._known() and self._own_page()):
            return
        if self.path != "/api/rollback":
            self._json(HTTPStatus.NOT_FOUND, {"error": "there is no such action"})
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > BODY:
            self._json(HTTPStatus.BAD_REQUEST, {"error": f"expected a body of at most {BODY} bytes"})
            return
        try:
            wanted = json.loads(self.rfile.read(int(length)))["version"]
            if type(wanted) is not int:
                raise TypeError
        except (ValueError, KeyError, TypeError):
            self._json(HTTPStatus.BAD_REQUEST, {"error": 'expected {"version": its number}'})
            return
        self._answer(lambda: self.server.board.rollback(wanted))

    # ---- who asks ----

    def _here(self) -> bool:
        """By a name of this machine: a name that somebody else's DNS points here is not one."""
        if self.headers.get("Host") in self.server.hosts:
            return True
        self._json(HTTPStatus.MISDIRECTED_REQUEST, {"error": "expected the address that sona dashboard printed"})
        return False

    def _known(self) -> bool:
        given = self.headers.get("X-Sona-Token", "")
        if hmac.compare_digest(given.encode("utf-8", "replace"), self.server.token.encode()):
            return True
        self._json(HTTPStatus.FORBIDDEN, {"error": "expected the token of the address that sona dashboard printed"})
        return False

    def _own_page(self) -> bool:
        """Sent by the page itself, and as what it sends."""
        if (
            self.headers.get("Origin") == f"http://{self.headers['Host']}"
            and self.headers.get("Sec-Fetch-Site", "same-origin") == "same-origin"
            and self.headers.get_content_type() == "application/json"
        ):
            return True
        self._json(HTTPStatus.FORBIDDEN, {"error": "expected a request of the page itself"})
        return False

    # ---- answers ----

    def _answer(self, make: Any) -> None:
        try:
            status, content = HTTPStatus.OK, make()
        except SonaValueError as error:
            status, content = HTTPStatus.BAD_REQUEST, {"error": one_line(str(error))}
        except SonaError as error:
            status, content = HTTPStatus.SERVICE_UNAVAILABLE, {"error": one_line(str(error))}
        self._json(status, content)

    def _json(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        self._send(status, json.dumps(content, allow_nan=False, separators=(",", ":")).encode(), "application/json")

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: addresses may carry what a terminal would obey."""

    # ---- what is new ----

    def _events(self) -> None:
        """Server-sent events: "tags" when a part has something new, "trouble" while the store cannot be read; ends with the server."""
        server = self.server
        if not server.streams.acquire(blocking=False):
            self._json(HTTPStatus.SERVICE_UNAVAILABLE, {"error": f"expected at most {STREAMS} pages at once"})
            return
        try:
            self.close_connection = True
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            self._stream()
        except OSError:  # the page is gone
            pass
        finally:
            server.streams.release()

    def _stream(self) -> None:
        server, last, said = self.server, b"", time.monotonic()
        while not server.ending.is_set():
            try:
                server.board.grant()
                event = b"event: tags\ndata: " + json.dumps(server.board.tags()).encode()
            except SonaClosedError:
                return
            except SonaError as error:
                event = b"event: trouble\ndata: " + json.dumps({"error": one_line(str(error))}).encode()
            if event != last or time.monotonic() - said >= ALIVE:
                self.wfile.write((event if event != last else b": alive") + b"\n\n")
                self.wfile.flush()
                last, said = event, time.monotonic()
            server.ending.wait(POLL)


def _newest(query: str) -> int:
    """Of ``?newest=N``; SonaValueError for what is no number."""
    given = parse_qs(query).get("newest", ["100000"])[-1]
    if not given.isascii() or not given.isdecimal() or len(given) > 9:
        raise SonaValueError(f"newest: expected a whole number, got {given[:20]!r}")
    return int(given)
