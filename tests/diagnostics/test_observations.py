"""Each observer alone: padding, allocator, waits of the host, graph breaks, documents."""

from __future__ import annotations

import lightning.pytorch as L
import pytest
import torch
from torch import nn

from lightning_llm.diagnostics.allocator import GLIBC_SETTINGS, allocator_in_use
from lightning_llm.diagnostics.compilation import CompilationWatch
from lightning_llm.diagnostics.documents import try_sight
from lightning_llm.diagnostics.host_syncs import HostSyncCounter
from lightning_llm.diagnostics.padding import padding_mask
from lightning_llm.diagnostics.phases import PhaseTimer


class ScriptedClock:
    """One second passes from each mark to the next."""

    def mark(self) -> int:
        return 0

    def seconds(self, marks: list[int]) -> list[float]:
        return [1.0] * (len(marks) - 1)


def test_time_belongs_to_the_innermost_part() -> None:
    timer = PhaseTimer(ScriptedClock(), guest="Guest")
    timer.begin()  # framework
    with timer.profile("[_TrainingEpochLoop].train_dataloader_next"):  # data
        pass
    with timer.profile("[LightningModule]M.optimizer_step"):  # optimizer, after framework
        with timer.profile("[Strategy]S.training_step"):  # forward
            pass
        with timer.profile("[Strategy]S.backward"), timer.profile("[Callback]Slow.on_x"):
            pass
    timer.end()
    split = timer.split()
    assert split.phases["data"] == split.phases["forward"] == 1
    assert split.phases["optimizer"] == 3
    assert split.phases["backward"] == 2
    assert split.callbacks == {"Slow": 1.0}
    assert split.total == len(timer._marks) - 1


def test_padding_is_the_repeated_end_without_targets() -> None:
    ids = torch.tensor([[5, 6, 0, 0], [5, 6, 7, 8]])
    labels = torch.tensor([[6, -100, -100, -100], [-100, -100, 8, -100]])
    found = padding_mask({"input_ids": ids, "shift_labels": labels})
    assert found is not None
    assert found.tolist() == [[False, False, True, True], [False] * 4]
    found = padding_mask({"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1, 0]] * 2)})
    assert found is not None
    assert found.sum() == 2
    assert padding_mask(torch.zeros(2)) is None


def test_the_allocator_is_recognised() -> None:
    assert allocator_in_use({}, "/usr/lib/libtcmalloc_minimal.so.4") == "tcmalloc"
    assert allocator_in_use({"LD_PRELOAD": "libjemalloc.so"}, "") == "jemalloc"
    if allocator_in_use({}, "") == "glibc":
        assert allocator_in_use(GLIBC_SETTINGS, "") == "glibc-tuned"


def test_waits_are_of_the_devices_values_alone() -> None:
    weight = nn.Parameter(torch.ones(3))
    counter = HostSyncCounter(torch.device("cpu"))
    counter.start([weight])
    try:
        total = (weight * 2).detach().sum()
        torch.tensor(3.0).item()  # a number of the host
        assert counter.total == 0
        total.item()
        float(total + 1)
        weight.detach().tolist()
        weight.detach()[weight.detach() > 0]
    finally:
        counter.stop()
    assert sorted(sync.what for sync in counter.found.elements()) == [
        "indexing with a mask",
        "item()",
        "item()",
        "tolist()",
    ]
    assert all("test_observations.py" in sync.where for sync in counter.found)
    total.item()
    assert counter.total == 4
    assert "tolist" not in vars(torch.Tensor)


def test_breaks_and_late_compilation_are_counted() -> None:
    torch.compiler.reset()
    watch = CompilationWatch()

    @torch.compile(backend="eager", dynamic=False)
    def double(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        torch._dynamo.graph_break()
        return y + 1

    double(torch.ones(2))
    watch.settled()
    double(torch.ones(2))
    assert watch.result().recompiles == 0
    double(torch.ones(3))
    result = watch.result()
    assert result.graph_breaks >= 1
    assert result.recompiles >= 1
    assert result.recompile_reasons
    torch.compiler.reset()


class Mixer(L.LightningModule):
    """Each position adds the mean of what it sees."""

    def __init__(self, masks_documents: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 4)
        self.masks_documents = masks_documents

    def hidden_states(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        ids = batch["input_ids"]
        sees = torch.ones(ids.shape[1], ids.shape[1]).tril().expand(len(ids), -1, -1)
        if self.masks_documents:
            documents = batch["document_ids"]
            sees = sees * (documents[:, :, None] == documents[:, None])
        return (sees / sees.sum(-1, keepdim=True)) @ self.embedding(ids)


@pytest.mark.parametrize("masks", [True, False])
def test_a_leaky_mask_is_found(masks: bool) -> None:
    batch = {
        "input_ids": torch.randint(16, (2, 8)),
        "document_ids": torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2], [0] * 8]),
    }
    sight = try_sight(Mixer(masks), batch)
    assert sight.document_leak is not masks
    assert sight.causal is True
    unmarked = try_sight(Mixer(False), {"input_ids": batch["input_ids"]})
    assert unmarked.document_leak is None
    assert "by choice" in unmarked.reason
