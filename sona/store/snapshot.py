"""Snapshots: named arrays and a JSON dict in a directory, replaced as a whole or not at all.

A snapshot is ``manifest.json`` and the safetensors file that it names by content hash. Data is written under a name that
no manifest refers to yet; the rename of the manifest is the moment the new snapshot exists. The manifest before it stays
as ``manifest.previous.json`` with its data and is the fall-back when the newest pair is damaged.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import stat
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from sona._files import TEMPORARY, replace_durably, sync
from sona._version import __version__
from sona.errors import SonaCorruptError, SonaStoreError, SonaTypeError, SonaValueError, SonaVersionError, SonaWarning

FORMAT = "sona-snapshot"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
PREVIOUS = "manifest.previous.json"
MAX_BYTES = 1 << 32  # of data, written or read
MAX_MANIFEST_BYTES = 1 << 24
MAX_DIMS = 8
DTYPES = frozenset(("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"))
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
DATA_NAME = re.compile(r"state-[0-9a-f]{32}\.safetensors")

Array = npt.NDArray[Any]


def save_snapshot(
    path: str | os.PathLike[str], arrays: Mapping[str, Array], meta: Mapping[str, Any], *, fingerprint: str | None = None
) -> str:
    """Write a snapshot; it is durable when this returns, and the one before it stays as the fall-back.

    Parameters
    ----------
    path : str or os.PathLike
        A directory, made when absent.
    arrays : mapping of str to ndarray
        Any layout and byte order; bool, integers and finite floats of up to 8 dimensions.
    meta : mapping
        JSON values with str keys; tuples come back as lists.
    fingerprint : str, optional
        Names the model and embedding that the arrays belong to.

    Returns
    -------
    str
        SHA-256 of the data file, hexadecimal.

    Raises
    ------
    SonaValueError, SonaTypeError
        Arrays or meta that cannot be kept; nothing is written.
    SonaStoreError
        The write failed; the snapshot before it is intact and still the newest.
    """
    where = _directory_path(path)
    encoded, shapes = _encode(arrays)
    digest = hashlib.sha256(encoded).hexdigest()
    data_name = f"state-{digest[:32]}.safetensors"
    if fingerprint is not None and not isinstance(fingerprint, str):
        raise SonaTypeError(f"expected fingerprint to be a str or None, got {type(fingerprint).__name__}")
    manifest = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "library": __version__,
        "fingerprint": fingerprint,
        "data": {"file": data_name, "bytes": len(encoded), "sha256": digest},
        "arrays": shapes,
        "meta": _plain("meta", meta),
    }
    text = _seal(manifest)
    with _as_store_error(where):
        _make_directory(where)
        with _locked_directory(where, fcntl.LOCK_EX) as directory:
            try:
                replace_durably(directory, data_name, encoded)
                _keep_previous(directory, where)
                replace_durably(directory, MANIFEST, text)
            finally:
                _sweep(directory, where)  # also of what a killed writer left
    return digest


def load_snapshot(path: str | os.PathLike[str], *, fingerprint: str | None = None) -> tuple[dict[str, Array], dict[str, Any]]:
    """Read the newest sound snapshot of a directory.

    Parameters
    ----------
    path : str or os.PathLike
        The directory given to `save_snapshot`.
    fingerprint : str, optional
        The model in use; compared with the one saved. None: not compared.

    Returns
    -------
    arrays : dict of str to ndarray
        C-contiguous, writable, native byte order.
    meta : dict

    Raises
    ------
    SonaStoreError
        There is no snapshot, or it cannot be read.
    SonaCorruptError
        Neither the newest snapshot nor the one before it is sound.
    SonaVersionError
        A newer format, or the snapshot of another model.

    Warns
    -----
    SonaWarning
        The newest snapshot is damaged and the one before it is returned.
    """
    where = _directory_path(path)
    with _as_store_error(where), _locked_directory(where, fcntl.LOCK_SH) as directory:
        damage: list[str] = []
        missing = 0
        for name in (MANIFEST, PREVIOUS):
            try:
                manifest = _read_manifest(directory, where, name)
                _check_fingerprint(manifest, where, fingerprint)
                arrays = _read_arrays(directory, where, manifest)
            except SonaCorruptError as exc:
                damage.append(str(exc))
            except FileNotFoundError:
                missing += 1
                damage.append(f"{where}: {name} is missing")
            else:
                if damage:
                    warnings.warn(f"{damage[0]}; going back to the snapshot before it", SonaWarning, stacklevel=2)
                return arrays, manifest["meta"]
    if missing == 2:
        raise SonaStoreError(f"{where}: expected a snapshot, got a directory without {MANIFEST}")
    raise SonaCorruptError(f"{where}: no sound snapshot: {'; '.join(damage)}")


def check_snapshot(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Look at every snapshot of a directory, the newest first, without going back: what each says of itself, and what is wrong with it.

    Returns
    -------
    list of dict
        ``manifest`` (file name) and ``fault`` (None where all is sound); of those that can be read also ``bytes`` of the data, ``arrays``
        (how many), ``fingerprint``, ``library``. The one before the newest is left out where there is none.

    Raises
    ------
    SonaStoreError
        There is no snapshot, or it cannot be read.
    """
    where = _directory_path(path)
    found: list[dict[str, Any]] = []
    with _as_store_error(where), _locked_directory(where, fcntl.LOCK_SH) as directory:
        for name in (MANIFEST, PREVIOUS):
            about: dict[str, Any] = {"manifest": name, "fault": None}
            try:
                manifest = _read_manifest(directory, where, name)
                about |= {"fingerprint": manifest.get("fingerprint"), "library": manifest.get("library")}
                arrays = _read_arrays(directory, where, manifest)
                about |= {"bytes": manifest["data"]["bytes"], "arrays": len(arrays)}
            except (SonaCorruptError, SonaVersionError) as exc:
                about["fault"] = str(exc)
            except FileNotFoundError:
                about["fault"] = f"{where}: {name} is missing"
            found.append(about)
    missing = [about["fault"] == f"{where}: {about['manifest']} is missing" for about in found]
    if all(missing):
        raise SonaStoreError(f"{where}: expected a snapshot, got a directory without {MANIFEST}")
    return found[:1] if missing[1] else found


# -- what may be kept ----------------------------------------------------------------------------------------------


def _encode(arrays: Mapping[str, Array]) -> tuple[bytes, dict[str, dict[str, Any]]]:
    """safetensors bytes, and {name: {dtype, shape}}."""
    from safetensors import numpy as safetensors  # 14 ms that `import sona` does not pay

    kept: dict[str, Array] = {}
    for name, array in arrays.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise SonaValueError(f"expected array names of 1 to 128 letters, digits, '_', '.' or '-', got {name!r:.80}")
        if not isinstance(array, np.ndarray):
            raise SonaTypeError(f"expected array {name!r} to be an ndarray, got {type(array).__name__}")
        if array.dtype.name not in DTYPES:
            raise SonaTypeError(f"expected array {name!r} of a bool, integer or float dtype, got {array.dtype}")
        if array.ndim > MAX_DIMS:
            raise SonaValueError(f"expected array {name!r} of at most {MAX_DIMS} dimensions, got {array.ndim}")
        # safetensors writes the buffer as it lies in memory: any other order or layout would be silently wrong on reload.
        kept[name] = np.array(array, dtype=array.dtype.newbyteorder("="), order="C", subok=False)
        if not _finite(kept[name]):
            raise SonaValueError(f"expected finite values in array {name!r}, got NaN or infinity")
    total = sum(array.nbytes for array in kept.values())
    if total > MAX_BYTES:
        raise SonaValueError(f"expected at most {MAX_BYTES} bytes of arrays, got {total}")
    encoded = safetensors.save(kept)
    again = safetensors.load(encoded)
    for name, array in kept.items():
        if again[name].dtype != array.dtype or again[name].shape != array.shape or again[name].tobytes() != array.tobytes():
            raise SonaStoreError(f"array {name!r} does not survive encoding")
    return encoded, {name: {"dtype": array.dtype.name, "shape": list(array.shape)} for name, array in kept.items()}


def _finite(array: Array) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _plain(where: str, value: object) -> Any:
    """`value` as JSON keeps it."""
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        if not math.isfinite(value):
            raise SonaValueError(f"expected finite numbers in {where}, got {value}")
        return value
    if isinstance(value, list | tuple):
        return [_plain(where, item) for item in value]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise SonaTypeError(f"expected str keys in {where}, got {key!r}")
        return {key: _plain(f"{where}[{key!r}]", item) for key, item in value.items()}
    raise SonaTypeError(f"expected JSON values in {where}, got {type(value).__name__}")


# -- the manifest --------------------------------------------------------------------------------------------------


def _canonical(manifest: Mapping[str, Any]) -> bytes:
    """What the manifest's own checksum covers; the same in every format version, so that a newer one is told from a damaged one."""
    return json.dumps(manifest, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _seal(manifest: dict[str, Any]) -> bytes:
    sealed = {**manifest, "sha256": hashlib.sha256(_canonical(manifest)).hexdigest()}
    text = json.dumps(sealed, indent=1, allow_nan=False).encode()
    if len(text) > MAX_MANIFEST_BYTES:
        raise SonaValueError(f"expected meta of at most {MAX_MANIFEST_BYTES} bytes of JSON, got {len(text)}")
    return text


def _read_manifest(directory: int, where: str, name: str) -> dict[str, Any]:
    text = _read_regular(directory, where, name, MAX_MANIFEST_BYTES)
    try:
        manifest = json.loads(text, parse_constant=_refuse_constant)
        seal = manifest.pop("sha256")
        sound = seal == hashlib.sha256(_canonical(manifest)).hexdigest() and manifest["format"] == FORMAT
        version = manifest["version"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise SonaCorruptError(f"{where}: {name} is not a sona manifest: {exc!r:.200}") from exc
    if not sound or type(version) is not int:
        raise SonaCorruptError(f"{where}: {name} does not match its checksum")
    if version > FORMAT_VERSION:
        raise SonaVersionError(
            f"{where}: expected snapshot format {FORMAT_VERSION} or older (sona {__version__}), "
            f"got {version} (sona {manifest.get('library')})"
        )
    return dict(manifest)


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _check_fingerprint(manifest: Mapping[str, Any], where: str, fingerprint: str | None) -> None:
    if fingerprint is not None and manifest.get("fingerprint") != fingerprint:
        raise SonaVersionError(f"{where}: expected a snapshot of model {fingerprint!r}, got one of {manifest.get('fingerprint')!r}")


def _read_arrays(directory: int, where: str, manifest: Mapping[str, Any]) -> dict[str, Array]:
    from safetensors import SafetensorError
    from safetensors import numpy as safetensors

    name, size = _check_layout(where, manifest)
    try:
        encoded = _read_regular(directory, where, name, size)
    except FileNotFoundError:
        raise SonaCorruptError(f"{where}: {name} is missing") from None
    if len(encoded) != size or hashlib.sha256(encoded).hexdigest() != manifest["data"]["sha256"]:
        raise SonaCorruptError(f"{where}: {name} does not match the checksum in its manifest")
    try:
        loaded = safetensors.load(encoded)
    except (SafetensorError, ValueError, KeyError, TypeError) as exc:
        raise SonaCorruptError(f"{where}: {name} is not a safetensors file: {exc}") from exc
    if {key: {"dtype": array.dtype.name, "shape": list(array.shape)} for key, array in loaded.items()} != manifest["arrays"]:
        raise SonaCorruptError(f"{where}: {name} holds other arrays than its manifest says")
    for key, array in loaded.items():
        if not _finite(array):
            raise SonaCorruptError(f"{where}: expected finite values in array {key!r}, got NaN or infinity")
    return {key: np.array(array, order="C") for key, array in loaded.items()}


def _check_layout(where: str, manifest: Mapping[str, Any]) -> tuple[str, int]:
    """(name, size) of the data file, once names, shapes and sizes are within bounds and agree: before anything is allocated."""
    try:
        name, size = manifest["data"]["file"], manifest["data"]["bytes"]
        total = 0
        for key, layout in manifest["arrays"].items():
            shape = layout["shape"]
            if not NAME.fullmatch(key) or layout["dtype"] not in DTYPES or len(shape) > MAX_DIMS:
                raise ValueError(f"array {key!r}: {layout!r:.200}")
            if not all(type(n) is int and 0 <= n < 2**31 for n in shape):
                raise ValueError(f"array {key!r}: shape {shape!r:.200}")
            total += math.prod(shape) * np.dtype(layout["dtype"]).itemsize
        if not DATA_NAME.fullmatch(name) or type(size) is not int or total > MAX_BYTES or not total <= size <= total + MAX_MANIFEST_BYTES:
            raise ValueError(f"data {name!r:.100} of {size!r:.40} bytes for {total} bytes of arrays")
        if type(manifest["meta"]) is not dict:
            raise ValueError("meta is not an object")
        if type(manifest["data"]["sha256"]) is not str:
            raise ValueError("the checksum of the data is not a text")
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise SonaCorruptError(f"{where}: the manifest is impossible: {exc!r:.300}") from exc
    return name, size


# -- files ---------------------------------------------------------------------------------------------------------


@contextmanager
def _as_store_error(where: str) -> Iterator[None]:
    try:
        yield
    except SonaStoreError:
        raise
    except OSError as exc:
        raise SonaStoreError(f"{where}: {exc.strerror or exc}") from exc


def _directory_path(path: str | os.PathLike[str]) -> str:
    try:
        text = os.fspath(path)
    except TypeError:
        raise SonaTypeError(f"expected path to be a str or os.PathLike, got {type(path).__name__}") from None
    if not isinstance(text, str):
        raise SonaTypeError(f"expected path to be a str or os.PathLike of str, got {type(text).__name__}")
    if not text or "\0" in text:
        raise SonaValueError(f"expected the path of a directory, got {text!r}")
    return os.path.abspath(text)


def _make_directory(where: str) -> None:
    try:
        os.mkdir(where)
    except FileExistsError:
        return  # opening it fails when it is a file
    parent = os.open(os.path.dirname(where), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(parent)
    finally:
        os.close(parent)


@contextmanager
def _locked_directory(where: str, lock: int) -> Iterator[int]:
    """Descriptor of the directory; writers have it alone. The kernel takes the lock back from the dead."""
    directory = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(directory, lock)
        except OSError as exc:
            # NFS cannot lock a directory. A single writer is safe without: the renames are atomic.
            if exc.errno not in (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP):
                raise
        try:
            yield directory
        finally:
            with contextlib.suppress(OSError):
                fcntl.flock(directory, fcntl.LOCK_UN)  # close() alone would leave it with a child forked meanwhile
    finally:
        os.close(directory)


def _keep_previous(directory: int, where: str) -> None:
    """Let the newest snapshot be the fall-back of the one to come, unless it is damaged: then the older fall-back is better."""
    try:
        manifest = _read_manifest(directory, where, MANIFEST)
        _read_arrays(directory, where, manifest)
    except (FileNotFoundError, SonaCorruptError):
        return
    except SonaVersionError:
        pass  # a newer format is not ours to judge
    replace_durably(directory, PREVIOUS, _read_regular(directory, where, MANIFEST, MAX_MANIFEST_BYTES))


def _sweep(directory: int, where: str) -> None:
    """Remove temporary files and data that no manifest names, as far as possible. Only for the writer that has the directory alone."""
    named: set[str] | None = set()
    for manifest in (MANIFEST, PREVIOUS):
        try:
            text = _read_regular(directory, where, manifest, MAX_MANIFEST_BYTES)
            if named is not None:
                named.add(json.loads(text)["data"]["file"])
        except FileNotFoundError:
            continue
        except (OSError, SonaCorruptError, ValueError, KeyError, TypeError, RecursionError):
            named = None  # it may name data that could still be rescued by hand
    for name in os.listdir(directory):
        if name.startswith(TEMPORARY) or (named is not None and DATA_NAME.fullmatch(name) and name not in named):
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=directory)


def _read_regular(directory: int, where: str, name: str, limit: int) -> bytes:
    """All of a regular file of at most `limit` bytes, symbolic links not followed."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_size > limit:
                raise SonaCorruptError(f"{where}: expected {name} to be a file of at most {limit} bytes, got {found.st_size}")
            with open(fd, "rb", closefd=False) as file:
                return file.read(limit)
        finally:
            os.close(fd)
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            raise SonaCorruptError(f"{where}: expected {name} to be a file, got a symbolic link") from exc
        if exc.errno == errno.EIO:
            raise SonaCorruptError(f"{where}: {name} cannot be read: {exc.strerror}") from exc
        raise
