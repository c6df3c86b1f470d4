"""SmolLM3: Llama with layers that have no positions, and with windows in chosen layers."""

from __future__ import annotations

from dataclasses import replace

from lightning_llm.interop.hf.decoder_tensors import decoder_tensors
from lightning_llm.interop.hf.layer_kinds import (
    rotations_from_hf,
    rotations_to_hf,
    windows_from_hf,
    windows_to_hf,
)
from lightning_llm.interop.hf.llama import LLAMA, equal_biases, llama_from_hf, llama_to_hf

SMOLLM3 = replace(
    LLAMA,
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    requires={name: values for name, values in LLAMA.requires.items() if name != "sliding_window"},
    converts=LLAMA.converts | {"rotary_pattern", "sliding_window", "sliding_window_pattern"},
    unused=LLAMA.unused - {"sliding_window_pattern"},
    to_hf=lambda config: {
        **llama_to_hf(config),
        **rotations_to_hf(config),
        **windows_to_hf(config),
        "use_sliding_window": config.sliding_window is not None,
    },
    from_hf=lambda hf: {**llama_from_hf(hf), **rotations_from_hf(hf), **windows_from_hf(hf)},
    tensors=decoder_tensors,
    limits=equal_biases,
    # The two lists say the same; transformers fills them in where a file has only these.
    neutral=frozenset({"no_rope_layer_interval", "use_sliding_window"}),
    converted=LLAMA.converted | {"layer_types", "no_rope_layers", "sliding_window"},
)
