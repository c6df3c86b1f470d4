"""Models built without weights for `FSDP2Strategy`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import WeightAveraging

from lightning_llm import CausalLM
from lightning_llm.cli.sharded_build import sharded_build
from lightning_llm.models import TransformerConfig
from lightning_llm.models.drawn_later import drawing, weights_drawn_later
from lightning_llm.strategies import FSDP2Strategy

CONFIG = TransformerConfig(vocab_size=61, max_seq_len=16, n_layers=2, dim=32, n_heads=4)
FSDP2 = "lightning_llm.strategies.FSDP2Strategy"


class OtherLoss(CausalLM):
    """Leaves building alone."""

    def aux_loss(self) -> None:
        return None


class Touches(CausalLM):
    """Looks at weights when they should be there."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.model.embedding.weight.data.zero_()


class Sets(Callback):
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        pl_module.model.embedding.weight.data.zero_()


@pytest.mark.parametrize(("kind", "later"), [(CausalLM, True), (OtherLoss, True), (Touches, False)])
def test_who_is_built_without_weights(kind: type[CausalLM], later: bool) -> None:
    with weights_drawn_later():
        built = kind(CONFIG)
    assert all(weight.is_meta == later for weight in built.parameters())
    assert not any(weight.is_meta for weight in kind(CONFIG).parameters())


def test_weights_are_those_of_the_moment_of_building() -> None:
    torch.manual_seed(5)
    now = CausalLM(CONFIG)
    torch.manual_seed(5)
    with weights_drawn_later():
        later = CausalLM(CONFIG)
    state = torch.rand(7)
    with drawing(later):
        later.model.to_empty(device="cpu").reset_parameters()
    assert not torch.equal(torch.rand(7), state)  # the generator went on from where it was
    for name, weight in now.state_dict().items():
        assert torch.equal(later.state_dict()[name], weight), name


@pytest.mark.parametrize(
    ("trainer", "later"),
    [
        ({"strategy": "fsdp2"}, True),
        ({"strategy": FSDP2Strategy()}, True),
        ({"strategy": {"class_path": FSDP2}, "callbacks": []}, True),
        ({"strategy": "ddp"}, False),
        ({"strategy": None}, False),
        ({"strategy": {"class_path": "lightning_llm.strategies.DDPStrategy"}}, False),
        ({"callbacks": {"class_path": "lightning_llm.callbacks.SampleText"}}, True),
        ({"callbacks": [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"}]}, True),
        ({"callbacks": [{"class_path": "lightning.pytorch.callbacks.ModelSummary"}]}, True),
        ({"callbacks": [{"class_path": "lightning.pytorch.callbacks.Timer"}]}, True),
        ({"callbacks": [{"class_path": "lightning_llm.interop.word_vectors.WordVectors"}]}, False),
        ({"callbacks": [Sets()]}, False),
        ({"callbacks": [{"class_path": f"{WeightAveraging.__module__}.WeightAveraging"}]}, False),
    ],
    ids=str,
)
def test_recipes_that_are_built_without_weights(trainer: dict[str, Any], later: bool) -> None:
    with sharded_build({"strategy": "fsdp2", **trainer}):
        assert CausalLM(CONFIG).model.embedding.weight.is_meta == later
