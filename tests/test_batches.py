"""The forms of labels and masks that a batch may have."""

from __future__ import annotations

import pytest
import torch

from lightning_llm import CausalLM
from lightning_llm.batches import documents_of, targets_of
from lightning_llm.models import TransformerConfig

CONFIG = TransformerConfig(vocab_size=61, max_seq_len=16, n_layers=2, dim=32, n_heads=4)


def test_hugging_face_labels_are_shifted() -> None:
    ids = torch.randint(0, 61, (3, 9))
    labels = ids.clone()
    labels[1, :4] = -100
    expected = torch.full((3, 9), -100)
    expected[:, :-1] = labels[:, 1:]
    assert torch.equal(targets_of({"input_ids": ids, "labels": labels}), expected)
    with pytest.raises(KeyError, match="shift_labels"):
        targets_of({"input_ids": ids})


def test_left_padded_batch_of_a_hugging_face_collator_equals_the_unpadded() -> None:
    ids = torch.randint(0, 61, (1, 9))
    padded = {
        "input_ids": torch.cat((torch.zeros(1, 4, dtype=torch.long), ids), 1),
        "attention_mask": torch.tensor([[0] * 4 + [1] * 9]),
        "labels": torch.cat((torch.full((1, 4), -100), ids), 1),
    }
    module = CausalLM(CONFIG).eval()
    nll, count = module.compute_loss(padded)
    expected, expected_count = module.compute_loss({"input_ids": ids, "labels": ids})
    # The first real token is a target of padding in this collator's labels: leave it out.
    assert count == expected_count + 1
    with torch.no_grad():
        first = module.model(torch.zeros(1, 1, dtype=torch.long)).log_softmax(-1)[0, 0, ids[0, 0]]
    torch.testing.assert_close(nll + first, expected, rtol=1e-5, atol=1e-5)


def test_padding_on_the_right_keeps_the_fast_path() -> None:
    batch = {
        "input_ids": torch.zeros(2, 4, dtype=torch.long),
        "attention_mask": torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]),
    }
    assert documents_of(batch) is None
    assert "attention_mask" in batch
