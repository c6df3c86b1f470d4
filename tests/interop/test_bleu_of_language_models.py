"""BLEUMonitor with the modules of this package: their generate, batched, gives the texts."""

from __future__ import annotations

from typing import Any

import pytest
import sacrebleu
import torch
from hf_modules import CONFIGS, loader, trainer

from lightning_llm import CausalLM, HFCausalLM
from lightning_llm.callbacks import BLEUMonitor
from lightning_llm.data import TokenizerSpec
from lightning_llm.data.tokenizer_training import train_tokenizer
from lightning_llm.models import TransformerConfig

PROMPTS = ["the cat sat", "on", "two old dogs slept near", "it", "all night long"]
REFERENCES = ["the cat sat on the mat", "a mat", "near it all night", "it is", "night long it"]


def modules(vocab_size: int) -> dict[str, Any]:
    small = {"n_layers": 2, "dim": 32, "n_heads": 2, "max_seq_len": 64, "init_std": 0.2}
    return {
        "ours": CausalLM(TransformerConfig(vocab_size=vocab_size, **small)),
        "theirs": HFCausalLM({**CONFIGS["llama"]}, vocab_size=vocab_size),
    }


@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_scores_are_those_of_texts_generated_one_by_one(kind: str, num_beams: int) -> None:
    spec = TokenizerSpec("word", vocab_size=30)
    tokenizer = train_tokenizer(spec, iter([" ".join(PROMPTS + REFERENCES)] * 3))
    lm = modules(len(tokenizer))[kind]
    lm.tokenizer = tokenizer
    ids = torch.arange(8)[None] % len(tokenizer)
    batches = [
        {
            "input_ids": ids,
            "shift_labels": ids,
            "prompts": PROMPTS[start : start + 2],
            "references": REFERENCES[start : start + 2],
        }
        for start in (0, 2, 4)
    ]
    run = trainer(callbacks=[BLEUMonitor(max_new_tokens=6, num_beams=num_beams)])
    run.validate(lm, loader(batches), verbose=False)
    options = {"max_new_tokens": 6, "num_beams": num_beams}
    texts = [lm.generate([prompt], **options)[0] for prompt in PROMPTS]
    assert len(set(texts)) > 1
    wanted = sacrebleu.corpus_chrf(texts, [REFERENCES]).score
    assert wanted > 5
    assert run.callback_metrics["val_chrf"].item() == pytest.approx(wanted)
    wanted = sacrebleu.corpus_bleu(texts, [REFERENCES]).score
    assert run.callback_metrics["val_bleu"].item() == pytest.approx(wanted)
    assert run.callback_metrics["val_loss"] > 0
