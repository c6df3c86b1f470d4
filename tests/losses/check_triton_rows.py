"""Compares the Triton kernel with its torch twin; a script too, as the interpreter needs one."""

from __future__ import annotations

import itertools
import sys

import torch
from torch.testing import assert_close

from lightning_llm.losses.softmax_rows import LossTerms, loss_rows_
from lightning_llm.losses.triton_rows import padded_logits, triton_loss_rows_

# Relative tolerance of a gradient: float32 arithmetic, then one rounding to the dtype.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def check(device: str) -> None:
    """Every combination of terms, in every dtype, over less and more than one block of columns."""
    torch.manual_seed(0)
    where = torch.device(device)
    for vocab_size, dtype in itertools.product((5, 101, 5000), TOLERANCE):
        for smoothing, z_loss, softcap, biased, weighted in itertools.product(
            (0.0, 0.1), (0.0, 1e-2), (None, 2.0), (False, True), (False, True)
        ):
            terms = LossTerms(-100, smoothing, z_loss, softcap)
            labels = torch.randint(0, vocab_size, (7,), device=where)
            labels[2], labels[3] = -100, vocab_size - 1
            bias = torch.randn(vocab_size, device=where) if biased else None
            weights = torch.randn(7, device=where) if weighted else None
            logits = padded_logits(7, vocab_size, dtype, where)
            logits.copy_(torch.randn(7, vocab_size) * 3)
            plain = logits.float().contiguous().clone()
            expected = loss_rows_(plain, labels, bias, weights, terms, True)
            untouched = padded_logits(7, vocab_size, dtype, where).copy_(logits)
            values = triton_loss_rows_(untouched, labels, bias, weights, terms, False)
            got = triton_loss_rows_(logits, labels, bias, weights, terms, True)
            for one, other, same in zip(got, expected, values, strict=True):
                assert_close(one, other, rtol=2e-6, atol=1e-5)
                assert_close(one, same, rtol=0, atol=0)
            tolerance = TOLERANCE[dtype]
            assert_close(logits.float(), plain, rtol=tolerance, atol=max(1e-6, 1e-3 * tolerance))
    beyond = torch.full((1,), 5, device=where)
    loss, _ = triton_loss_rows_(
        padded_logits(1, 5, torch.float32, where).zero_(), beyond, None, None, terms, False
    )
    assert loss.isnan().all()


if __name__ == "__main__":
    check(sys.argv[1])
