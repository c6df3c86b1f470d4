"""LitGPT's model in a loop without a framework."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from benchmarks.pacing import Pacer, UnavailableError
from benchmarks.training import TrainOptions, bare_loop
from benchmarks.weights import hugging_face_weights
from benchmarks.workloads import Workload


def run(options: dict[str, Any], pacer: Pacer) -> None:
    """Train. Extra: ``compile`` (the whole model)."""
    settings = TrainOptions(**options)
    settings.refuse_unknown("compile")
    try:
        from litgpt.utils import chunked_cross_entropy
    except ImportError as error:
        raise UnavailableError(
            f"{error}; pip install --no-deps litgpt, or --python litgpt=INTERPRETER"
        ) from error
    torch.manual_seed(settings.seed)
    model = build_model(settings.work)
    if not settings.work.is_gpt2 and settings.same_weights:
        model.load_state_dict(renamed(hugging_face_weights(settings)))
    if settings.work.is_gpt2:
        pacer.facts["note"] = "LitGPT has no learned positions: RoPE, weights of its own"
    model.to(settings.device, settings.weight_dtype)
    forward = torch.compile(model) if "compile" in settings.extras else model

    def loss_of(ids: Tensor, targets: Tensor) -> Tensor:
        return chunked_cross_entropy(forward(ids), targets)  # chunks as in its own training

    bare_loop(model, loss_of, settings, pacer)


def build_model(work: Workload) -> Any:
    """Its model at the workload's sizes; for GPT-2 the nearest it has."""
    from litgpt import GPT, Config

    sizes = work.model
    common = {
        "name": work.name,
        "block_size": work.seq_len,
        "n_layer": sizes["n_layers"],
        "n_embd": sizes["dim"],
        "n_head": sizes["n_heads"],
        "vocab_size": sizes["vocab_size"],
        "padded_vocab_size": sizes["vocab_size"],
        "rotary_percentage": 1.0,
        "parallel_residual": False,
    }
    if not work.is_gpt2:
        llama = {
            "n_query_groups": sizes["n_kv_heads"],
            "intermediate_size": sizes["hidden_dim"],
            "norm_class_name": "RMSNorm",
            "mlp_class_name": "LLaMAMLP",
            "bias": False,
        }
        return GPT(Config(**common, **llama))
    model = GPT(
        Config(**common, intermediate_size=4 * sizes["dim"], bias=True, gelu_approximate="tanh")
    )
    model.apply(model._init_weights)
    model.lm_head.weight = model.transformer.wte.weight  # as its --tie_embeddings
    return model


def renamed(llama: dict[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face's Llama weights under LitGPT's names; query, key and value in one matrix."""
    fixed = {
        "model.embed_tokens.weight": "transformer.wte.weight",
        "model.norm.weight": "transformer.ln_f.weight",
        "lm_head.weight": "lm_head.weight",
    }
    parts = {
        "input_layernorm": "norm_1",
        "post_attention_layernorm": "norm_2",
        "self_attn.o_proj": "attn.proj",
        "mlp.gate_proj": "mlp.fc_1",
        "mlp.up_proj": "mlp.fc_2",
        "mlp.down_proj": "mlp.proj",
    }
    theirs = {fixed[name]: tensor for name, tensor in llama.items() if name in fixed}
    for name, tensor in llama.items():
        found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", name)
        if found is None:
            continue
        layer, part = f"transformer.h.{found[1]}", found[2]
        if part in parts:
            theirs[f"{layer}.{parts[part]}.weight"] = tensor
        elif part == "self_attn.q_proj":
            query_key_value = [llama[name.replace("q_proj", f"{kind}_proj")] for kind in "qkv"]
            theirs[f"{layer}.attn.qkv.weight"] = torch.cat(query_key_value)
    return theirs
