"""Searches over Debian's package descriptions, and users who click: the streams of ranker_table.py."""

from __future__ import annotations

import json
import re
import subprocess
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

TEST_QUERIES = 2000
SHOWN = 10


# ---- data ----


def fields(text: str) -> Iterator[dict[str, list[str]]]:
    """Paragraphs of a control file: lines by field."""
    for paragraph in text.split("\n\n"):
        found: dict[str, list[str]] = {}
        key = ""
        for line in paragraph.split("\n"):
            if line[:1] in (" ", "\t") and key:
                found[key].append(line[1:])
            elif ":" in line:
                key, value = line.split(":", 1)
                found[key] = [value.strip()]
        if found:
            yield found


def descriptions(lists: Path) -> list[tuple[str, str]]:
    """(short, long) of each package, one a description, in the order of their names."""

    def read(path: Path) -> str:
        return subprocess.run(["/usr/lib/apt/apt-helper", "cat-file", str(path)], check=True, stdout=subprocess.PIPE).stdout.decode()

    longs: dict[str, str] = {}
    for path in sorted(lists.glob("*Translation-en*")):
        for each in fields(read(path)):
            if "Description-md5" in each and "Description-en" in each:
                longs.setdefault(each["Description-md5"][0], " ".join(line for line in each["Description-en"][1:] if line != "."))
    rows: dict[str, tuple[str, str, str]] = {}
    for path in sorted(lists.glob("*_Packages*")):
        for each in fields(read(path)):
            md5 = each.get("Description-md5", [""])[0]
            if md5 in longs and md5 not in rows:
                rows[md5] = (each["Package"][0], each["Description"][0], " ".join(longs[md5].split()))
    return [(short, long) for _, short, long in sorted(rows.values())]


def sentences(text: str) -> list[str]:
    """Of 5 to 40 words."""
    return [each for each in re.split(r"(?<=[.!?])\s+(?=[A-Z])", text) if 5 <= len(each.split()) <= 40]


def embedder(wheel: Path):  # type: ignore[no-untyped-def]
    """Unit mean of the token vectors that WordLlama's wheel holds."""
    from safetensors.numpy import load
    from tokenizers import Tokenizer

    with zipfile.ZipFile(wheel) as members:
        (weights,) = load(members.read("wordllama/weights/l2_supercat_256.safetensors")).values()
        tokenizer = Tokenizer.from_str(members.read("wordllama/tokenizers/l2_supercat_tokenizer_config.json").decode())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    weights = weights.astype(np.float32)

    def embed(texts: list[str]) -> F32:
        rows = np.zeros((len(texts), weights.shape[1]), np.float32)
        for start in range(0, len(texts), 2000):
            for row, found in enumerate(tokenizer.encode_batch(texts[start : start + 2000], add_special_tokens=False), start):
                if found.ids:
                    rows[row] = weights[found.ids].mean(0)
        norm = np.linalg.norm(rows, axis=1, keepdims=True)
        return rows / np.where(norm == 0, 1, norm)

    return embed


@dataclass(frozen=True)
class Corpus:
    """Embeddings (n, 256) of the short and long description of each package, and of sentences of the long ones, in their order."""

    short: F32
    long: F32
    sentence: F32
    first: I64  # sentences of package i: first[i] to first[i + 1]

    @classmethod
    def read(cls, directory: Path) -> Corpus:
        """From the .npy files of an earlier call, or from apt's lists and the wheel."""
        kept = directory / "corpus.npz"
        if not kept.exists():
            texts = descriptions(directory)
            wheels = list(directory.glob("wordllama-*.whl"))
            if not texts or not wheels:
                raise SystemExit(f"{directory}: expected apt's lists and the wheel of wordllama, see ranker_table.py --help")
            embed = embedder(wheels[0])
            parts = [sentences(long) for _, long in texts]
            first = np.cumsum([0, *map(len, parts)])
            short, long = embed([short for short, _ in texts]), embed([long for _, long in texts])
            np.savez(kept, short=short, long=long, sentence=embed([each for part in parts for each in part]), first=first)
            (directory / "corpus.json").write_text(json.dumps({"packages": len(texts), "sentences": int(first[-1])}))
        with np.load(kept) as arrays:
            return cls(**arrays)


# ---- streams ----


@dataclass
class Searches:
    """
    Documents, users who look for one of them, and held-out queries.

    Attributes
    ----------
    documents : (n, d)
    test_queries, test_targets : (m, d), (m,)
    """

    documents: F32
    test_queries: F32
    test_targets: I64
    draws: Iterator[tuple[F32, int]]


def once(corpus: Corpus, seed: int) -> Searches:
    """Short description -> long one, 24000 packages, each equally often; the held-out queries are of packages that nobody looks for."""
    random = np.random.default_rng(seed)
    rows = random.permutation(len(corpus.short))[:24000]
    queries, documents = corpus.short[rows], np.ascontiguousarray(corpus.long[rows])
    test = np.arange(22000, 22000 + TEST_QUERIES)

    def draw() -> Iterator[tuple[F32, int]]:
        while True:
            target = int(random.integers(20000))
            yield queries[target], target

    return Searches(documents, queries[test], test, draw())


def popular(corpus: Corpus, seed: int) -> Searches:
    """Sentence of the long description -> short one, 20000 packages by Zipf's law; the held-out queries are other sentences."""
    random = np.random.default_rng(seed)
    counts = np.diff(corpus.first)
    rows = random.permutation(np.flatnonzero(counts >= 2))[:20000]
    asked, held = [], []
    for row in rows:
        shuffled = random.permutation(np.arange(corpus.first[row], corpus.first[row + 1]))
        half = (len(shuffled) + 1) // 2
        asked.append(shuffled[:half])
        held.append(shuffled[half:])
    share = 1 / np.arange(1, len(rows) + 1)
    below = np.cumsum(share / share.sum())

    def target() -> int:
        return min(int(np.searchsorted(below, random.random())), len(rows) - 1)

    def draw() -> Iterator[tuple[F32, int]]:
        while True:
            wanted = target()
            yield corpus.sentence[random.choice(asked[wanted])], wanted

    test = np.array([target() for _ in range(TEST_QUERIES)])
    queries = corpus.sentence[[random.choice(held[wanted]) for wanted in test]]
    return Searches(np.ascontiguousarray(corpus.short[rows]), queries, test, draw())


STREAMS = {"popular": popular, "once": once}


# ---- users ----


@dataclass
class User:
    """
    Looks at place r with chance 1 / r^exponent; clicks there with chance 0.9 on what is looked for and `stray` on anything else.

    hostile : float
        Share of the users who click on everything they look at but what they were looking for.
    """

    seed: int
    exponent: float = 1.0
    stray: float = 0.03
    hostile: float = 0.0

    def __post_init__(self) -> None:
        self.random = np.random.default_rng([self.seed, 1])

    def clicks(self, shown: list[int], target: int) -> list[int]:
        places = np.arange(1, len(shown) + 1)
        looked = self.random.random(len(shown)) < places**-self.exponent
        right = np.array(shown) == target
        chance = np.where(right, 0.0, 0.9) if self.random.random() < self.hostile else np.where(right, 0.9, self.stray)
        return [shown[place] for place in np.flatnonzero(looked & (self.random.random(len(shown)) < chance))]


# ---- measures ----


def quality(scores_of, searches: Searches) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """(nDCG@10, MRR) on the held-out queries; `scores_of` maps queries (m, d) to scores (m, n)."""
    ranks = []
    for start in range(0, len(searches.test_queries), 500):
        scores = scores_of(searches.test_queries[start : start + 500])
        wanted = scores[np.arange(len(scores)), searches.test_targets[start : start + 500]]
        ranks.append((scores > wanted[:, None]).sum(1))
    rank = np.concatenate(ranks)
    return float(np.where(rank < SHOWN, 1 / np.log2(2 + rank), 0).mean()), float((1 / (1 + rank)).mean())
