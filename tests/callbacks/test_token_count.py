"""Which tensor of a foreign batch is taken for token ids."""

from __future__ import annotations

import torch

from lightning_llm.callbacks._token_count import tokens_of


def test_a_column_of_lengths_or_classes_is_no_sequence() -> None:
    ids, column = torch.ones(2, 8, dtype=torch.int64), torch.tensor([[8], [4]])
    for batch in ((column, ids), (ids, column), {"lengths": column, "tokens": ids}):
        assert tokens_of(batch) == [(16, 8)]
    assert tokens_of((torch.rand(2, 3, 4, 4), column)) == []
