"""The same starting weights in every implementation of the same architecture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.training import TrainOptions
from lightning_llm.models import Transformer, TransformerConfig


def our_model(options: TrainOptions) -> Transformer:
    """Our Transformer, on the CPU in float32; the others start from its weights."""
    torch.manual_seed(options.seed)
    return Transformer(TransformerConfig(**options.work.model))


def hugging_face_weights(options: TrainOptions) -> dict[str, Tensor]:
    """The starting weights under Hugging Face's names."""
    from lightning_llm.interop.hf import to_hf_state_dict

    model = our_model(options)
    return to_hf_state_dict(model.config, model.state_dict())


def hugging_face_model(options: TrainOptions) -> Any:
    """`transformers`' model in training mode, in float32 on the CPU, as `from_config` builds it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from lightning_llm.interop.hf import to_hf_config

    fields = to_hf_config(TransformerConfig(**options.work.model))
    config = AutoConfig.for_model(**fields)
    config.use_cache = False  # for decoding; a cache filled in training only costs
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train()
    if not options.same_weights:
        return model
    missing, unexpected = model.load_state_dict(hugging_face_weights(options), strict=False)
    # A tied head has no weight of its own in the table.
    assert set(missing) <= {"lm_head.weight"}
    assert not unexpected
    return model
