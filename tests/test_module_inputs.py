"""What `CausalLM` says to batches and models it cannot work with."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_llm import CausalLM
from lightning_llm.models import TransformerConfig

IDS = torch.arange(16)


def fit(rows: list[Any], module: CausalLM | None = None) -> None:
    config = TransformerConfig(vocab_size=61, max_seq_len=16, n_layers=1, dim=32, n_heads=4)
    L.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module or CausalLM(config), DataLoader(rows, batch_size=2))


@pytest.mark.parametrize(
    ("row", "error", "said"),
    [
        (IDS, TypeError, r"a tensor of shape \(2, 16\); it must be a mapping with 'input_ids'"),
        ((IDS, IDS), TypeError, "the batch is a list; it must be"),
        ({"tokens": IDS}, TypeError, r"with keys \['tokens'\]; it must be"),
        ({"input_ids": IDS}, KeyError, r"with keys \['input_ids'\]; it needs 'shift_labels'"),
    ],
)
def test_a_batch_that_is_none_of_ours_is_described(
    row: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        fit([row, row])


def test_a_wrapped_model_is_refused_with_what_to_write_instead() -> None:
    config = TransformerConfig(vocab_size=61, max_seq_len=16, n_layers=1, dim=32, n_heads=4)
    module = CausalLM(config)
    module.model = torch.compile(module.model, backend="eager")  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"other names in checkpoints.*module.model.compile\(\)"):
        fit([{"input_ids": IDS, "labels": IDS}] * 2, module)
