"""The parts of a model add up to the whole."""

from __future__ import annotations

import pytest
import torch
from foreign import Bigram, loader, make_rows, trainer

from lightning_llm.callbacks import StartupBanner
from lightning_llm.callbacks._parameter_table import parameter_rows


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = torch.nn.Linear(4, 12)
        self.mlp = torch.nn.Linear(4, 16)


class Deep(Bigram):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(Block() for _ in range(3))
        self.tied = torch.nn.Linear(13, 13, bias=False)
        self.tied.weight = self.table.weight


def test_rows_sum_to_the_parameters() -> None:
    module = Deep()
    rows = parameter_rows(module)
    assert rows == {"table": 169, "blocks x 3: attention": 180, "blocks x 3: mlp": 240}
    assert sum(rows.values()) == sum(p.numel() for p in module.parameters())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("summary", [True, False])
def test_shown_unless_the_summary_is_off(summary: bool, capsys: pytest.CaptureFixture[str]) -> None:
    run = trainer(callbacks=[StartupBanner()], enable_model_summary=summary)
    run.fit(Bigram(), loader(make_rows(2)))
    assert ("100.0%" in capsys.readouterr().err) is summary


def test_flops_per_token_are_told_where_they_are_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Parts(torch.nn.Module):
        def flops_by_part(self, seq_len: int) -> dict[str, int]:
            return {"attention": 250 * seq_len, "head": 750 * seq_len}

    class Counted(Bigram):
        model = Parts()

        def flops_per_token(self, seq_len: int) -> int:
            return 1000 * seq_len

    trainer(callbacks=[StartupBanner()]).fit(Counted(), loader(make_rows(2)))
    told = capsys.readouterr().err
    assert "FLOPs per token: 6.00k (attention 25%, head 75%)" in told
