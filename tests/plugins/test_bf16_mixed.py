"""`BF16MixedPrecision`: bfloat16 products, float32 weights, and nothing in the way of clipping."""

from __future__ import annotations

import lightning.pytorch as L
import pytest
import torch
from precision_models import Foreign, language_model, train, trainer

from lightning_llm.plugins import BF16MixedPrecision


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
