"""safetensors files of other programs: read whatever float type they have, rewritten tensor by tensor."""

import json
import os
import secrets
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from sona._arrays import Floats
from sona._files import TEMPORARY, sync
from sona.errors import SonaCorruptError, SonaStoreError, SonaValueError

_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_MOST_HEADER = 100_000_000  # bytes, the format's own bound


def safetensors_bytes(arrays: Mapping[str, npt.NDArray[Any]], about: dict[str, str]) -> bytes:
    """A safetensors file; arrays are made contiguous first."""
    from safetensors.numpy import save

    content: bytes = save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, about)
    return content


def as_floats(raw: bytes, kind: str) -> Floats:
    """The numbers of a tensor as float32, flat. SonaValueError for what is not of 16 to 64 bits floating point."""
    if kind not in _TYPES:
        raise SonaValueError(f"expected tensors of {', '.join(_TYPES)}, got {kind}")
    numbers = np.frombuffer(raw, _TYPES[kind])
    if kind == "BF16":
        return (numbers.astype(np.uint32) << 16).view(np.float32)
    return numbers.astype(np.float32)


def as_bytes(numbers: Floats, kind: str) -> bytes:
    """The reverse, rounded to the nearest number of that type, of two equally near ones to the even one."""
    if kind != "BF16":
        return np.ascontiguousarray(numbers, _TYPES[kind]).tobytes()
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def read_header(file: BinaryIO, where: Path) -> tuple[bytes, dict[str, dict[str, Any]]]:
    """The bytes before the data, and name -> dtype, shape, data_offsets; SonaCorruptError for another file."""
    try:
        start = file.read(8)
        (length,) = struct.unpack("<Q", start)
        if length > _MOST_HEADER:
            raise ValueError(f"a header of {length} bytes")
        text = file.read(length)
        tensors = json.loads(text)
        tensors.pop("__metadata__", None)
        size = os.fstat(file.fileno()).st_size - 8 - length
        for about in tensors.values():
            begin, end = about["data_offsets"]
            if not 0 <= begin <= end <= size:
                raise ValueError(f"a tensor at {begin} to {end} of {size} bytes")
            if about["dtype"] in _TYPES and end - begin != np.dtype(_TYPES[about["dtype"]]).itemsize * int(np.prod(about["shape"])):
                raise ValueError(f"{end - begin} bytes for shape {about['shape']}")
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SonaCorruptError(f"{where}: expected a safetensors file, got: {error}") from error
    return start + text, tensors


def read_safetensors(where: Path) -> dict[str, Floats]:
    """All tensors as float32. SonaStoreError, SonaCorruptError."""
    try:
        with open(where, "rb") as file:
            head, tensors = read_header(file, where)
            return {name: _read(file, len(head), about, where) for name, about in tensors.items()}
    except OSError as error:
        raise SonaStoreError(f"{where}: {error.strerror or error}") from error


def _read(file: BinaryIO, start: int, about: dict[str, Any], where: Path) -> Floats:
    begin, end = about["data_offsets"]
    file.seek(start + begin)
    raw = file.read(end - begin)
    if len(raw) != end - begin:
        raise SonaCorruptError(f"{where}: expected {end - begin} bytes of a tensor, got {len(raw)}")
    return as_floats(raw, about["dtype"]).reshape(about["shape"])


def rewrite_safetensors(source: Path, target: Path, changes: Mapping[str, Callable[[Floats], Floats]]) -> None:
    """
    Copy a file with some tensors replaced by a function of them, of the same shape, in their own type; the other bytes stay.

    One tensor is in memory at a time. SonaCorruptError for a file that is no safetensors.
    """
    with open(source, "rb") as file, open(target, "wb") as out:
        head, tensors = read_header(file, source)
        out.write(head)
        for name, about in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
            begin, end = about["data_offsets"]
            if name in changes:
                new = changes[name](_read(file, len(head), about, source))
                content = as_bytes(new, about["dtype"])
            else:
                file.seek(len(head) + begin)
                content = file.read(end - begin)
            if len(content) != end - begin or out.tell() != len(head) + begin:
                raise SonaCorruptError(f"{source}: expected tensors one after the other, got {name!r} at {begin}")
            out.write(content)


@contextmanager
def replacing(where: Path) -> Iterator[Path]:
    """
    A path beside `where` for a file or a new directory, which takes its place, durably, unless something is raised; then nothing is left.

    SonaStoreError for OSError.
    """
    temporary = where.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
    try:
        yield temporary
        for written in [temporary, *temporary.rglob("*")] if temporary.is_dir() else [temporary]:
            _sync(written)
        os.replace(temporary, where)
        _sync(where.parent)
    except OSError as error:
        if isinstance(error, SonaStoreError):
            raise
        raise SonaStoreError(f"{where}: {error.strerror or error}") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        sync(fd)
    finally:
        os.close(fd)
