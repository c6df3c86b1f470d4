"""A small GPT in the style of nanoGPT, in a loop of its own."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.contenders.small_gpt import SmallGPT
from benchmarks.pacing import Pacer, UnavailableError
from benchmarks.training import TrainOptions, bare_loop
from benchmarks.weights import hugging_face_weights


def run(options: dict[str, Any], pacer: Pacer) -> None:
    """Train. Extra: ``compile`` (the whole model, as nanoGPT does)."""
    settings = TrainOptions(**options)
    settings.refuse_unknown("compile")
    work = settings.work
    if not work.is_gpt2:
        raise UnavailableError(f"{work.name} is a Llama; this model is GPT-2's architecture")
    torch.manual_seed(settings.seed)
    sizes = {name: work.model[name] for name in ("vocab_size", "n_layers", "dim", "n_heads")}
    model = SmallGPT(seq_len=work.seq_len, **sizes)
    if settings.same_weights:
        model.load_hugging_face(hugging_face_weights(settings))
    model.to(settings.device, settings.weight_dtype)
    step = torch.compile(model) if "compile" in settings.extras else model
    bare_loop(model, step, settings, pacer)
