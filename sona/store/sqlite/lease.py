"""A lease that the kernel takes back when its holder dies: an exclusive flock on a side file."""

import fcntl
import os
import weakref

from sona.errors import SonaStoreError

_all: "weakref.WeakSet[Lease]" = weakref.WeakSet()


class Lease:
    """At most one open `Lease` per path is held at a time, over all processes.

    The side file stays when the lease is released: removing it would let two processes lock two files of one name.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd: int | None = None
        _all.add(self)

    @property
    def held(self) -> bool:
        return self._fd is not None

    def acquire(self) -> bool:
        """Take the lease if it is free; never waits. True when held afterwards.

        Raises
        ------
        SonaStoreError
            The side file cannot be opened or locked.
        """
        while self._fd is None:
            try:
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            except OSError as exc:
                raise SonaStoreError(f"{self.path}: cannot open the lease file: {exc.strerror}") from exc
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_current(fd):
                    self._fd = fd
            except BlockingIOError:
                return False
            except OSError as exc:
                raise SonaStoreError(f"{self.path}: cannot lock: {exc.strerror}") from exc
            finally:
                if self._fd != fd:
                    os.close(fd)
        return True

    def _is_current(self, fd: int) -> bool:
        # Somebody may have removed the side file between open and flock: then the lock is on a file without a name.
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self.path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Give the lease back; nothing happens when it is not held."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            try:
                fcntl.flock(fd, fcntl.LOCK_UN)  # close() alone would leave it with a child that inherited the descriptor
            finally:
                os.close(fd)

    def disown(self) -> None:
        """In a forked child: drop the inherited descriptor; the parent keeps the lease."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)


def _after_fork_in_child() -> None:
    for lease in list(_all):
        lease.disown()


os.register_at_fork(after_in_child=_after_fork_in_child)
