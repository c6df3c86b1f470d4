"""Who takes part in the training benchmark: one file each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.race import Task


@dataclass(frozen=True)
class Contender:
    """A framework, or a bare loop.

    Attributes:
        run: ``package.module:function``.
        about: What it is, for tables.
        extras: What may follow its name after ``+``.
    """

    run: str
    about: str
    extras: tuple[str, ...] = ("compile", "fused")


CONTENDERS = {
    "ours": Contender(
        "benchmarks.contenders.ours:run",
        "lightning_llm in Lightning's Trainer, progress bar and logger on",
        ("compile", "fused", "whole_logits", "lightning_bf16", "master", "kept_gradients"),
    ),
    "hf": Contender(
        "benchmarks.contenders.hf_loop:run", "Hugging Face model, bare loop", ("compile",)
    ),
    "hf_trainer": Contender(
        "benchmarks.contenders.hf_trainer:run", "Hugging Face model, Hugging Face Trainer"
    ),
    "litgpt": Contender("benchmarks.contenders.litgpt_loop:run", "LitGPT model, bare loop"),
    "lightning_hf": Contender(
        "benchmarks.contenders.lightning_hf:run",
        "Hugging Face model, Lightning's Trainer, progress bar and logger on",
    ),
    "nanogpt": Contender(
        "benchmarks.contenders.small_gpt_loop:run",
        "small GPT in the style of nanoGPT, bare loop",
    ),
}

# Names for --contenders, each a list of labels.
SETS = {
    "default": "ours,ours+compile,hf,hf_trainer,litgpt,lightning_hf,nanogpt",
    "eager": "ours,hf,hf_trainer,litgpt,lightning_hf,nanogpt",
    "compiled": (
        "ours+compile,hf+compile,hf_trainer+compile,litgpt+compile,lightning_hf+compile,"
        "nanogpt+compile"
    ),
    # As a user gets them: our recipes compile and take torch's fused AdamW, as the Hugging Face
    # Trainer does by default; plain Lightning's user writes AdamW.
    "shipped": "ours+compile+fused,hf_trainer+fused,lightning_hf",
    "ablation": "ours,ours+whole_logits,ours+lightning_bf16,ours+kept_gradients,ours+compile",
}


def parse_label(label: str) -> tuple[Contender, list[str]]:
    """Split ``name+extra+extra``.

    Raises:
        ValueError: There is no such contender, or it has no such extra.
    """
    name, *extras = label.split("+")
    if name not in CONTENDERS:
        raise ValueError(f"no contender {name!r}; there are {', '.join(CONTENDERS)}")
    unknown = sorted(set(extras) - set(CONTENDERS[name].extras))
    if unknown:
        allowed = ", ".join(CONTENDERS[name].extras)
        raise ValueError(f"{label}: {name} has no {', '.join(unknown)}; it has {allowed}")
    return CONTENDERS[name], extras


def training_tasks(
    labels: list[str],
    options: Mapping[str, Any],
    *,
    threads: int | None = None,
    pythons: Mapping[str, str] | None = None,
) -> list[Task]:
    """Return the tasks of a training race.

    Args:
        labels: ``name+extra...``.
        options: Fields of `benchmarks.training.TrainOptions` but for ``extras``.
        threads: CPU threads of each.
        pythons: Interpreter by contender's name.
    """
    tasks = []
    for label in labels:
        contender, extras = parse_label(label)
        python = (pythons or {}).get(label.partition("+")[0])
        device = options.get("device", "cpu")
        task_options = {**options, "extras": extras}
        tasks.append(Task(label, contender.run, task_options, device, threads, python))
    return tasks
