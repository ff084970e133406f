"""What a run leaves behind: tables, figures and JSON files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write JSON beside its place and rename it there: a reader or a crash never meets half a file."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(as_json(content) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def as_json(content: Mapping[str, Any]) -> str:
    """Strict JSON: NaN and infinity are refused."""
    return json.dumps(content, indent=1, allow_nan=False)
