"""`BF16MixedPrecision`: bfloat16 products, float32 weights, and nothing in the way of clipping."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision
from precision_models import Foreign, language_model, train, trainer
from torch.utils.data import DataLoader, TensorDataset

from lightning_llm.plugins import BF16MixedPrecision, Float8Precision, MasterWeightsPrecision


class Dtypes(L.Callback):
    """What a linear layer puts out while training."""

    def __init__(self) -> None:
        self.seen: set[torch.dtype] = set()

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        layer = next(part for part in module.modules() if isinstance(part, torch.nn.Linear))
        layer.register_forward_hook(lambda layer, args, output: self.seen.add(output.dtype))


@pytest.mark.parametrize("build", [Foreign, language_model])
def test_products_are_bfloat16_and_weights_float32(build: type) -> None:
    module, dtypes = build(), Dtypes()
    train(module, 2, BF16MixedPrecision(), callbacks=[dtypes])
    assert dtypes.seen == {torch.bfloat16}
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


@pytest.mark.parametrize("build", [Foreign, language_model])
def test_fused_optimizer_is_clipped(build: type) -> None:
    """Lightning's own plugin refuses this pair; the result is that of clipping by hand."""
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        train(Foreign(), 1, precision="bf16-mixed", gradient_clip_val=0.1)

    norms: list[float] = []

    class Norms(L.Callback):
        def on_before_zero_grad(self, trainer: L.Trainer, module: L.LightningModule, *_) -> None:
            grads = [p.grad for p in module.parameters() if p.grad is not None]
            if grads:
                norms.append(float(torch.stack([grad.norm() for grad in grads]).norm()))

    train(build(), 3, BF16MixedPrecision(), gradient_clip_val=0.01, callbacks=[Norms()])
    assert norms == pytest.approx([0.01, 0.01], rel=1e-3)


def test_losses_are_those_of_lightnings_plugin() -> None:
    ours = train(language_model(), 5, BF16MixedPrecision()).losses
    lightnings = train(language_model(), 5, precision="bf16-mixed").losses
    assert torch.equal(torch.stack(ours), torch.stack(lightnings))
    single = train(language_model(), 5).losses
    assert not torch.equal(torch.stack(ours), torch.stack(single))


def test_trainer_knows_the_precision() -> None:
    assert trainer(BF16MixedPrecision()).precision == "bf16-mixed"
    assert trainer(BF16MixedPrecision()).scaler is None


@pytest.mark.parametrize(
    ("plugin", "lightnings"),
    [
        (BF16MixedPrecision(), MixedPrecision("bf16-mixed", device="cpu")),
        (Float8Precision(), MixedPrecision("bf16-mixed", device="cpu")),
        (MasterWeightsPrecision(), HalfPrecision("bf16-true")),
    ],
    ids=lambda plugin: type(plugin).__name__,
)
def test_plugins_have_what_lightnings_have(plugin: Any, lightnings: Any) -> None:
    """Its own callbacks ask by class; others read ``device`` and ``scaler``."""
    assert isinstance(plugin, type(lightnings))
    assert set(dir(plugin)) >= set(dir(lightnings))
    for name, value in vars(lightnings).items():
        assert getattr(plugin, name) == value
    assert plugin.precision == lightnings.precision


def test_device_is_that_of_the_module() -> None:
    plugin = BF16MixedPrecision()
    train(Foreign(), 1, plugin)
    assert plugin.device == plugin.device_type == "cpu"
    plugin.device_type = "cuda"
    assert plugin.device == "cuda"


def test_floating_point_inputs_are_those_of_bf16_true() -> None:
    """As with ``precision="bf16-true"``: float32 rows would not fit bfloat16 weights."""

    class Regression(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            x, y, index = batch
            assert (x.dtype, index.dtype) == (torch.bfloat16, torch.int64)
            return (self.layer(x) - y).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    batch = torch.randn(8, 4), torch.randn(8, 1), torch.arange(8)
    runner = trainer(MasterWeightsPrecision(), max_epochs=1)
    runner.fit(Regression(), DataLoader(TensorDataset(*batch), batch_size=4))
    assert runner.global_step == 2
