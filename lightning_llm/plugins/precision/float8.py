"""Large linear layers in float8, the rest in bfloat16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_llm.errors import InvalidValueError
from lightning_llm.plugins.precision.bf16 import BF16MixedPrecision
from lightning_llm.plugins.precision.float8_linear import ALIGNMENT, Recipe, to_float8

_FIRST_CAPABILITY = (8, 9)  # Ada; Hopper is 9.0


class Float8Precision(BF16MixedPrecision):
    """:class:`BF16MixedPrecision` with the large ``nn.Linear`` layers in float8.

    Twice the rate of bfloat16 products on Hopper and later, less the cost of scaling: worth it
    from about 2,048 features, and with compiled blocks only, where scaling is fused into what
    comes before. Scales come from the values of each step (Micikevicius et al. 2022,
    https://arxiv.org/abs/2209.05433, for the formats):

    - ``"tensorwise"``: one per tensor; weights and activations e4m3, gradients e5m2. The faster.
    - ``"rowwise"``: one per row; e4m3 throughout. The more accurate.

    Embeddings and the output projection stay bfloat16, and so do layers smaller than ``min_dim``
    or with features that are no multiple of 16. Weights keep their dtype and their names; the
    layers are plain again when the trainer is done.

    On a CPU the same rounding is done and the products are float32: for trying a recipe out, not
    for speed, as a line at the start says.

    Args:
        recipe: See above.
        min_dim: Layers with fewer input or output features are left alone.
        exclude: Names of layers to leave alone, in full or their last part.

    Raises:
        ValueError: ``recipe`` is unknown; the model has no layer to convert; the device has no
            float8 arithmetic.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(plugins=[Float8Precision("tensorwise")])
    """

    def __init__(
        self,
        recipe: Recipe = "tensorwise",
        *,
        min_dim: int = 2048,
        exclude: Sequence[str] = ("head", "lm_head", "output", "embed_out"),
    ) -> None:
        super().__init__()
        if recipe not in get_args(Recipe):
            raise InvalidValueError(f"recipe={recipe!r} must be one of {get_args(Recipe)}")
        self.recipe: Recipe = recipe
        self.min_dim = min_dim
        self.exclude = frozenset(exclude)
        self._converted: list[tuple[nn.Linear, type[nn.Linear]]] = []

    @property
    def description(self) -> str:
        """What is computed in what, for people."""
        return f"float8 {self.recipe} over bf16-mixed"

    @override
    def convert_module(self, module: nn.Module) -> nn.Module:
        """Turns layers into float8 ones in place.

        Raises:
            ValueError: None is large enough.
        """
        self.teardown()  # what an interrupted run may have left
        kept = _output_weights(module)
        linears = [
            (name, part)
            for name, part in module.named_modules()
            # A class with a forward of its own, such as a quantized layer, is no plain product.
            if isinstance(part, nn.Linear) and type(part).forward is nn.Linear.forward
        ]
        for name, linear in linears:
            if id(linear.weight) not in kept and self._suits(name, linear):
                self._converted.append((linear, type(linear)))
        if not self._converted:
            raise InvalidValueError(
                f"Float8Precision found no layer to convert among {len(linears)} linear layers: "
                f"all are excluded, smaller than min_dim={self.min_dim}, or no multiple of "
                f"{ALIGNMENT} wide; lower min_dim, or use BF16MixedPrecision"
            )
        for linear, _ in self._converted:
            to_float8(linear, self.recipe)
        return module

    @override
    def connect(
        self, model: nn.Module, optimizers: list[Optimizer], lr_schedulers: list[Any]
    ) -> tuple[nn.Module, list[Optimizer], list[Any]]:
        """Checks the device, which the model has been moved to by now."""
        for linear, _ in self._converted[:1]:
            check_device(linear.weight.device)
        return super().connect(model, optimizers, lr_schedulers)

    @override
    def teardown(self) -> None:
        """Makes the layers what they were."""
        for linear, original in self._converted:
            linear.__class__ = original
            del linear.recipe
        self._converted = []

    def _suits(self, name: str, linear: nn.Linear) -> bool:
        extents = (linear.in_features, linear.out_features)
        if name in self.exclude or name.rpartition(".")[2] in self.exclude:
            return False
        return min(extents) >= self.min_dim and all(n % ALIGNMENT == 0 for n in extents)


def check_device(device: torch.device) -> None:
    """Refuses a device without float8 arithmetic.

    Raises:
        ValueError: Its name and capability are given.
    """
    if device.type == "cpu":
        rank_zero_info(
            "Float8Precision: no CPU has float8 products that are worth it; factors are rounded to "
            "float8 and multiplied in float32, which shows what float8 does to a loss, and is "
            "slower than BF16MixedPrecision"
        )
        return
    remedy = "use BF16MixedPrecision"
    if device.type != "cuda" or torch.version.hip is not None:
        raise InvalidValueError(f"Float8Precision knows no float8 arithmetic on {device}; {remedy}")
    capability = torch.cuda.get_device_capability(device)
    if capability < _FIRST_CAPABILITY:
        raise InvalidValueError(
            f"Float8Precision needs compute capability 8.9 (Ada, Hopper) or later; "
            f"{torch.cuda.get_device_name(device)} has {capability[0]}.{capability[1]}; {remedy}"
        )


def _output_weights(module: nn.Module) -> set[int]:
    """Identities of embeddings, and of the output projections that modules declare."""
    kept: set[int] = set()
    for part in module.modules():
        weights = [getattr(part, "head_weight", None)]
        if isinstance(part, nn.Embedding):
            weights.append(part.weight)
        declared: Any = getattr(part, "get_output_embeddings", None)
        if callable(declared):
            weights.append(getattr(declared(), "weight", None))
        kept |= {id(weight) for weight in weights if isinstance(weight, torch.Tensor)}
    return kept
