"""Pairs of answers to much the same request, of which one was rewarded more: what preference training takes."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sona._arrays import Floats
from sona._fields import finite
from sona.errors import SonaStoreError, SonaValueError
from sona.ext.records import Row, decision_rows, write_rows
from sona.store import Store

WINDOW = 4096  # rewarded decisions before each that it is compared with
_BLOCK = 512
_IDS = ("chosen_id", "rejected_id", "chosen_arm", "rejected_arm", "chosen_reward", "rejected_reward", "similarity")

Texts = Mapping[int, tuple[str, str | None]]


def write_preferences(
    store: Store,
    file: str | os.PathLike[str],
    *,
    texts: Texts | None = None,
    similarity: float = 0.98,
    margin: float = 0.0,
) -> int:
    """
    Write pairs as JSON lines; returns how many.

    Each rewarded decision is compared with the 4096 rewarded ones before it. Among those of another arm whose request has a cosine of at
    least `similarity` and whose reward differs by more than `margin`, the most similar one makes a pair with it, of equally similar ones
    the latest. So a decision makes at most one pair with an earlier one, and memory is bounded by the window.

    Parameters
    ----------
    store : Store
    file : path
        ``.jsonl``.
    texts : mapping of int to (str, str or None), optional
        Decision id -> the request, and what was answered; None: the arm's name is the answer. Pairs whose chosen decision is not in it are
        left out.
    similarity : float
        In (0, 1].
    margin : float
        At least 0, in units of reward after mapping to [0, 1].

    Notes
    -----
    With texts a line has ``prompt``, ``chosen`` and ``rejected``, the columns of TRL's DPO; the prompt is that of the chosen decision.
    Without, it has ``x``, the vector of its request, and the ids tell where to look for the texts. All have ids, arms, rewards and cosine.

    The pairs are what was logged: arms that the policy liked are compared more often, and one reward says little where rewards are random.

    Raises
    ------
    SonaValueError, SonaTypeError, SonaStoreError, SonaCorruptError
    """
    if not 0 < finite(similarity, "similarity") <= 1:
        raise SonaValueError(f"similarity: expected a number in (0, 1], got {similarity}")
    if finite(margin, "margin") < 0:
        raise SonaValueError(f"margin: expected a number of at least 0, got {margin}")
    if Path(file).suffix != ".jsonl":
        raise SonaValueError(f"{os.fspath(file)}: expected a file *.jsonl")
    columns = dict.fromkeys(("prompt", "chosen", "rejected", *_IDS) if texts is not None else (*_IDS, "x"), "")
    pairs = preferences(store, similarity, margin)
    return write_rows(file, columns, pairs if texts is None else _told(pairs, texts))


def read_texts(file: str | os.PathLike[str]) -> dict[int, tuple[str, str | None]]:
    """
    Texts by decision id from JSON lines with ``id``, ``prompt`` and, where the answer is not the arm's name, ``response``.

    SonaValueError for a line that is something else, SonaStoreError where the file cannot be read.
    """
    found: dict[int, tuple[str, str | None]] = {}
    try:
        with open(file, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    row = json.loads(line)
                    response = row.get("response")
                    if not (type(row["id"]) is int and isinstance(row["prompt"], str) and isinstance(response, str | None)):
                        raise ValueError("other types")
                    found[row["id"]] = row["prompt"], response
                except (ValueError, KeyError, AttributeError, TypeError) as error:
                    expected = 'expected {"id": int, "prompt": str, "response": str or null}'
                    raise SonaValueError(f"{os.fspath(file)}:{number}: {expected}, got {line.strip()[:80]!r}") from error
    except UnicodeDecodeError as error:
        raise SonaValueError(f"{os.fspath(file)}: expected UTF-8, got: {error}") from error
    except OSError as error:
        raise SonaStoreError(f"{os.fspath(file)}: {error.strerror or error}") from error
    return found


def _told(pairs: Iterator[Row], texts: Texts) -> Iterator[Row]:
    for pair in pairs:
        if pair["chosen_id"] not in texts:
            continue
        prompt, chosen = texts[pair["chosen_id"]]
        rejected = texts[pair["rejected_id"]][1] if pair["rejected_id"] in texts else None
        told = {"prompt": prompt, "chosen": chosen or pair["chosen_arm"], "rejected": rejected or pair["rejected_arm"]}
        yield pair | told


def preferences(store: Store, similarity: float, margin: float, *, window: int = WINDOW) -> Iterator[Row]:
    """The pairs that `write_preferences` writes, in the order of their later decision; x as an array."""
    before: list[Row] = []
    block: list[Row] = []
    for row in decision_rows(store):
        if row["reward"] is None or not np.any(row["x"]):
            continue
        if (before and len(before[0]["x"]) != len(row["x"])) or (block and len(block[0]["x"]) != len(row["x"])):
            yield from _pairs(before, block, similarity, margin, window)
            before, block = [], []
        block.append(row)
        if len(block) == _BLOCK:
            yield from _pairs(before, block, similarity, margin, window)
            before, block = [*before, *block][-window:], []
    yield from _pairs(before, block, similarity, margin, window)


def _unit(rows: list[Row]) -> Floats:
    x = np.stack([row["x"] for row in rows]).astype(np.float64)
    unit: Floats = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    return unit


def _pairs(before: list[Row], block: list[Row], similarity: float, margin: float, window: int) -> Iterator[Row]:
    """Of each row of the block with one of the `window` rows before it, in `before` or in the block."""
    if not block:
        return
    rows = [*before, *block]
    unit = _unit(rows)
    arms = np.unique([row["arm"] for row in rows], return_inverse=True)[1]
    rewards = np.array([row["reward"] for row in rows])
    own = np.arange(len(before), len(rows))
    cosine = np.minimum(unit[own] @ unit.T, 1.0)
    other = np.arange(len(rows))
    fits = (other < own[:, None]) & (other >= own[:, None] - window) & (arms != arms[own][:, None])
    fits &= (np.abs(rewards - rewards[own][:, None]) > margin) & (cosine >= similarity - 1e-6)  # float32 says 0.9999999 of equals
    best = len(rows) - 1 - np.argmax(np.where(fits, np.round(cosine, 6), -2.0)[:, ::-1], axis=1)
    for index in np.flatnonzero(fits.any(axis=1)).tolist():
        yield _pair(rows[own[index]], rows[best[index]], float(cosine[index, best[index]]))


def _pair(one: Row, two: Row, cosine: float) -> dict[str, Any]:
    chosen, rejected = (one, two) if one["reward"] > two["reward"] else (two, one)
    pair: dict[str, Any] = {"similarity": round(cosine, 6), "x": chosen["x"]}
    for role, row in (("chosen", chosen), ("rejected", rejected)):
        pair |= {f"{role}_{field}": row[field] for field in ("id", "arm", "reward")}
    return pair
