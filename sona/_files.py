"""Files that are replaced as a whole or not at all."""

import contextlib
import fcntl
import os
import secrets
from pathlib import Path

TEMPORARY = ".tmp-"


def sync(fd: int) -> None:
    """Return when a file, or the names in a directory, are on the disk."""
    full = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync alone stops at the drive's cache
    if full is not None:
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, full)
            return
    os.fsync(fd)


def replace_durably(directory: int, name: str, content: bytes) -> None:
    """Put a file into a directory (its descriptor), in the place of one of that name; a failure leaves that one, and no temporary file."""
    temporary = f"{TEMPORARY}{secrets.token_hex(8)}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=directory)
    try:
        try:
            left = memoryview(content)
            while left:
                left = left[os.write(fd, left) :]
            sync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise
    sync(directory)


def replace_file(path: Path, content: bytes) -> None:
    """The same by a path."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        replace_durably(directory, path.name, content)
    finally:
        os.close(directory)
