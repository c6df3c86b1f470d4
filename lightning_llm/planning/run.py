"""What is planned: a module and the choices of a recipe that decide memory, traffic and time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from lightning_llm.errors import InvalidValueError
from lightning_llm.plugins.precision.bf16 import BF16MixedPrecision
from lightning_llm.plugins.precision.float8 import Float8Precision
from lightning_llm.plugins.precision.master_weights import MasterWeightsPrecision
from lightning_llm.strategies import FSDP2Strategy


@dataclass(frozen=True)
class Parallelism:
    """How a strategy spreads a module over ranks.

    Attributes:
        kind: ``"single"``, ``"ddp"`` or ``"fsdp2"``.
        shards: Ranks that one copy of the weights is spread over.
        replicas: Copies of the weights.
        tensor: Ranks that share every layer.
        context: Ranks that share every sequence; among the shards.
        reshard_after_forward: See ``FSDP2Strategy``.
        reduce_every_micro_batch: As above.
        reduce_dtype: As above; of gradients under bfloat16 compute.
        cpu_offload: As above.
        bucket_views: Gradients live in DDP's buckets.
        activation_checkpointing: ``"none"``, ``"full"`` or ``"selective"``.
        compile: Whether blocks are compiled.
        block_class: Class of the blocks where they are not found.
    """

    kind: str
    shards: int = 1
    replicas: int = 1
    tensor: int = 1
    context: int = 1
    reshard_after_forward: bool | int = True
    reduce_every_micro_batch: bool = False
    reduce_dtype: torch.dtype = torch.float32
    cpu_offload: bool = False
    bucket_views: bool = True
    activation_checkpointing: str = "none"
    compile: bool = False
    block_class: Any = None

    @classmethod
    def of(cls, strategy: Any, world_size: int) -> Parallelism:
        """Read a strategy, or Lightning's name of one.

        Raises:
            ValueError: It is not one that can be planned, or does not fit the number of ranks.
        """
        if isinstance(strategy, str):
            strategy = _named(strategy, world_size)
        blocks = getattr(strategy, "blocks", None)
        options: dict[str, Any] = {}
        if blocks is not None:
            options = {
                "activation_checkpointing": blocks.activation_checkpointing,
                "compile": blocks.compile,
                "block_class": blocks.block_class,
            }
        if isinstance(strategy, FSDP2Strategy):
            return cls._of_fsdp2(strategy, world_size, options)
        if isinstance(strategy, DDPStrategy):
            views = strategy._ddp_kwargs.get("gradient_as_bucket_view", False)
            return cls("ddp", replicas=world_size, bucket_views=views, **options)
        if isinstance(strategy, SingleDeviceStrategy):
            if world_size != 1:
                raise InvalidValueError(
                    f"world_size={world_size} with {type(strategy).__name__}, which uses one "
                    f"device; add --config recipes/hardware/fsdp2.yaml or ddp.yaml"
                )
            return cls("single", **options)
        raise InvalidValueError(
            f"strategy={type(strategy).__name__} cannot be planned; use SingleDeviceStrategy, "
            f"DDPStrategy or FSDP2Strategy of lightning_llm.strategies"
        )

    @classmethod
    def _of_fsdp2(cls, strategy: Any, world_size: int, options: dict[str, Any]) -> Parallelism:
        copies, tensor = strategy.replicate_size, strategy.tensor_parallel_size
        context, given = strategy.context_parallel_size, strategy._data_parallel_size
        others = copies * context * tensor
        readers = max(1, world_size // others) if given == "auto" else int(given)
        if readers * others != world_size:
            raise InvalidValueError(
                f"data_parallel_size={given}, replicate_size={copies}, "
                f"context_parallel_size={context} and tensor_parallel_size={tensor} must multiply "
                f"to world_size={world_size}"
            )
        return cls(
            "fsdp2",
            shards=readers * context,
            replicas=copies,
            tensor=tensor,
            context=context,
            reshard_after_forward=strategy.reshard_after_forward,
            reduce_every_micro_batch=strategy.reduce_every_micro_batch,
            reduce_dtype=getattr(torch, strategy.reduce_dtype),
            cpu_offload=strategy.cpu_offload,
            **options,
        )


def _named(name: str, world_size: int) -> Any:
    from lightning_llm.strategies import DDPStrategy as OwnDDPStrategy
    from lightning_llm.strategies import SingleDeviceStrategy as OwnSingleDeviceStrategy

    if name == "fsdp2":
        return FSDP2Strategy()
    if name.startswith("ddp"):
        return OwnDDPStrategy(gradient_as_bucket_view=False)
    if name == "auto":
        if world_size == 1:
            return OwnSingleDeviceStrategy()
        return OwnDDPStrategy(gradient_as_bucket_view=False)
    raise InvalidValueError(f"strategy={name!r} cannot be planned; use 'auto', 'ddp' or 'fsdp2'")


@dataclass(frozen=True)
class Numerics:
    """The dtypes of a precision setting.

    Attributes:
        name: As Lightning or the plugin calls it.
        weights: Of the stored weights.
        gradients: Of the gradients that the optimizer reads.
        states: Of the tensors the optimizer works on, whose states follow.
        masters: Whether float32 copies of the weights are kept for the optimizer.
        autocast: Products convert their operands to bfloat16.
        compute: Of matrix products.
        float8: The plugin that converts layers to float8.
        reduced: Of the gradients that DDP sums over ranks; None: as ``gradients``.
    """

    name: str
    weights: torch.dtype
    gradients: torch.dtype
    states: torch.dtype
    masters: bool = False
    autocast: bool = False
    compute: torch.dtype = torch.float32
    float8: Float8Precision | None = None
    reduced: torch.dtype | None = None

    @classmethod
    def of(cls, precision: Any) -> Numerics:
        """Read a precision plugin, or Lightning's name of a precision.

        Raises:
            ValueError: It is not known.
        """
        wide, narrow = torch.float32, torch.bfloat16
        if isinstance(precision, MasterWeightsPrecision):
            return cls(
                name=f"bf16, {precision.mode}",
                weights=narrow,
                gradients=wide,
                states=wide,
                masters=precision.mode == "master",
                compute=narrow,
                reduced=narrow,
            )
        if isinstance(precision, Float8Precision):
            return cls("float8", wide, wide, wide, autocast=True, compute=narrow, float8=precision)
        if isinstance(precision, BF16MixedPrecision):
            precision = "bf16-mixed"
        name = str(getattr(precision, "precision", precision))
        if name in ("bf16-mixed", "bf16", "16-mixed", "16"):
            return cls(name, wide, wide, wide, autocast=True, compute=narrow)
        if name in ("bf16-true", "16-true"):
            return cls(name, narrow, narrow, narrow, compute=narrow)
        if name in ("32-true", "32", "None"):
            return cls("32-true", wide, wide, wide)
        raise InvalidValueError(
            f"precision={name!r} cannot be planned; use 32-true, bf16-mixed, bf16-true, or a "
            f"plugin of lightning_llm.plugins"
        )


@dataclass(frozen=True)
class Run:
    """A training run on paper.

    Attributes:
        module: A ``CausalLM`` on the meta device.
        parallelism: Of its strategy.
        numerics: Of its precision.
        world_size: Ranks.
        micro_batch_size: Sequences of one rank in one forward pass.
        seq_len: Tokens of a sequence.
        accumulate_grad_batches: Micro-batches of a step.
        clips_gradients: Whether the norm of the gradients is computed in every step.
        tokens: Of the whole run; None where the recipe does not say.
        documents: Whether batches have ``document_ids``, for which masks are made.
    """

    module: Any
    parallelism: Parallelism
    numerics: Numerics
    world_size: int = 1
    micro_batch_size: int = 1
    seq_len: int = 1024
    accumulate_grad_batches: int = 1
    clips_gradients: bool = False
    tokens: int | None = None
    documents: bool = False

    def __post_init__(self) -> None:
        names = ("world_size", "micro_batch_size", "seq_len", "accumulate_grad_batches")
        wrong = [f"{name}={getattr(self, name)}" for name in names if getattr(self, name) < 1]
        if wrong:
            raise InvalidValueError(f"{', '.join(wrong)} must be at least 1")

    @property
    def param_dtype(self) -> torch.dtype:
        """Of the weights a block computes with: FSDP2 gathers them in the dtype of products."""
        gathered = self.parallelism.kind == "fsdp2"
        return self.numerics.compute if gathered else self.numerics.weights

    @property
    def reduce_dtype(self) -> torch.dtype:
        """Of gradients while they are summed over ranks."""
        if self.parallelism.kind != "fsdp2":
            return self.numerics.reduced or self.numerics.gradients
        narrow = self.numerics.compute != torch.float32
        return self.parallelism.reduce_dtype if narrow else torch.float32

    @property
    def positions(self) -> int:
        """Tokens of a sequence that a rank computes, or ranks that share its layers together."""
        return self.seq_len // self.parallelism.context

    @property
    def tokens_per_rank(self) -> int:
        """Of one micro-batch, at these positions."""
        return self.micro_batch_size * self.positions

    @property
    def data_ranks(self) -> int:
        """Ranks that read different rows: those that share layers or sequences read the same."""
        return self.world_size // (self.parallelism.tensor * self.parallelism.context)

    @property
    def tokens_per_step(self) -> int:
        """Of all ranks and micro-batches."""
        sequences = self.micro_batch_size * self.accumulate_grad_batches * self.data_ranks
        return sequences * self.seq_len
