"""sona export: what a store has, as files of other programs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sona.cli.arguments import learner, share, versioned

if TYPE_CHECKING:
    from sona.cli.arguments import Commands

ADAPTERS = ("peft", "gguf", "safetensors", "merged")
RECORDS = ("decisions", "trajectories", "patterns", "preferences")


def add_export(commands: Commands) -> None:
    export = commands.add_parser(
        "export",
        help="what a store learned or recorded, as files that other programs read",
        description="Writes each of the files named. The store is only read, also while a process learns for it: what that has not saved "
        "yet is missing.",
    )
    versioned(export)
    export.add_argument("--version", metavar="V", help="number or id of the version to export (default: what was saved last)")
    adapters = export.add_argument_group("what was learned")
    adapters.add_argument("--peft", metavar="DIR", help="a LoRA of named linear layers, for PEFT, vLLM, SGLang, LoRAX")
    adapters.add_argument("--gguf", metavar="FILE", help="the same for llama.cpp; needs gguf")
    adapters.add_argument("--safetensors", metavar="FILE", help="the factors of every layer")
    adapters.add_argument(
        "--merged",
        metavar="PATH",
        help="with --model, a copy of the model with the corrections in its weights; without, y = x W + b as *.npy, *.safetensors, or a "
        "directory for sentence-transformers' Dense",
    )
    adapters.add_argument("--model", metavar="DIR", help="the frozen model, for --merged and --gguf")
    records = export.add_argument_group("what was recorded")
    records.add_argument("--decisions", metavar="FILE", help="decisions with their rewards: *.parquet (needs pyarrow) or *.jsonl")
    records.add_argument("--trajectories", metavar="FILE", help="ended trajectories with their steps: the same")
    records.add_argument("--patterns", metavar="FILE", help="patterns with their verdicts: the same")
    records.add_argument("--preferences", metavar="FILE", help="pairs of much the same request, one rewarded more: *.jsonl")
    records.add_argument("--texts", metavar="FILE", help="for --preferences: lines of id, prompt and, if need be, response")
    records.add_argument(
        "--similarity", type=share, default=0.98, metavar="C", help="for --preferences: least cosine of two requests (default: 0.98)"
    )
    export.set_defaults(run=_export, usage_error=export.error)


def _export(arguments: argparse.Namespace) -> int:
    from sona.report import as_json

    chosen = [name for name in (*ADAPTERS, *RECORDS) if getattr(arguments, name) is not None]
    if not chosen:
        arguments.usage_error(f"expected at least one of {', '.join('--' + name for name in (*ADAPTERS, *RECORDS))}")
    if arguments.texts is not None and arguments.preferences is None:
        arguments.usage_error("--texts: expected --preferences beside it")
    if arguments.model is not None and arguments.merged is None and arguments.gguf is None:
        arguments.usage_error("--model: expected --merged or --gguf beside it")
    written = []
    for done in _write(arguments, chosen):
        written.append(done)
        if not arguments.json:
            print(f"{done['kind']} {done['path']}: {done['content']}")
    if arguments.json:
        print(as_json({"written": written}))
    return 0


def _write(arguments: argparse.Namespace, chosen: list[str]) -> Iterator[dict[str, Any]]:
    if any(name in ADAPTERS for name in chosen):
        yield from _adapters(arguments, [name for name in chosen if name in ADAPTERS])
    if any(name in RECORDS for name in chosen):
        yield from _records(arguments, [name for name in chosen if name in RECORDS])


def _adapters(arguments: argparse.Namespace, chosen: list[str]) -> Iterator[dict[str, Any]]:
    from sona.ext.gguf import write_gguf
    from sona.ext.merged import write_dense, write_factors, write_merged
    from sona.ext.peft import write_peft
    from sona.ext.stored import corrections

    found = corrections(arguments.store, namespace=arguments.namespace, name=learner(arguments), version=arguments.version)
    ranks = [len(factors.down) for factors in found.factors]
    content = f"{found.origin}, {len(ranks)} layer{'s' * (len(ranks) != 1)} of rank {max(ranks)}"
    for kind in chosen:
        path = getattr(arguments, kind)
        if kind == "peft":
            write_peft(found, path)
        elif kind == "gguf":
            write_gguf(found, path, model=arguments.model)
        elif kind == "safetensors":
            write_factors(found, path)
        elif arguments.model is not None:
            write_merged(found, arguments.model, path)
        else:
            write_dense(found, path)
        yield {"kind": kind, "path": path, "content": content}


def _records(arguments: argparse.Namespace, chosen: list[str]) -> Iterator[dict[str, Any]]:
    from sona.ext.preferences import read_texts, write_preferences
    from sona.ext.records import write_decisions, write_patterns, write_trajectories
    from sona.ext.stored import opened

    texts = None if arguments.texts is None else read_texts(arguments.texts)
    with opened(arguments.store, arguments.namespace) as store:
        for kind in chosen:
            path = getattr(arguments, kind)
            if kind == "decisions":
                count = write_decisions(store, path)
            elif kind == "trajectories":
                count = write_trajectories(store, path)
            elif kind == "patterns":
                count = write_patterns(store, path, name=learner(arguments))
            else:
                count = write_preferences(store, path, texts=texts, similarity=arguments.similarity)
            yield {"kind": kind, "path": path, "content": f"{count} rows"}
