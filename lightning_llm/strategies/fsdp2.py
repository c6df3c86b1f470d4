"""Fully sharded data parallelism: weights, gradients and optimizer states spread over ranks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Literal

import lightning.pytorch as L
import torch
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.fabric.utilities.device_dtype_mixin import _update_properties
from lightning.fabric.utilities.optimizer import _optimizers_to_device
from lightning.pytorch.callbacks import (
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy
from typing_extensions import override

from lightning_llm.errors import InvalidValueError
from lightning_llm.models.drawn_later import drawing
from lightning_llm.plugins.precision.bf16 import BF16MixedPrecision
from lightning_llm.plugins.precision.master_weights import MasterWeightsPrecision
from lightning_llm.strategies.blocks import find_blocks
from lightning_llm.strategies.checkpointing import ActivationCheckpointing
from lightning_llm.strategies.context_parallel import ContextParallel
from lightning_llm.strategies.fsdp2_checkpoints import ShardedCheckpoints
from lightning_llm.strategies.launch import check_launch
from lightning_llm.strategies.parallelize import BlockOptions
from lightning_llm.strategies.sharding import (
    is_sharded,
    set_prefetch,
    shard,
    sharded_parts,
    whole_weights,
)
from lightning_llm.strategies.tensor_parallel import TensorParallel

# They copy the module before it is sharded, and mix its weights with shards later.
_NEED_WHOLE_WEIGHTS = (WeightAveraging, StochasticWeightAveraging, ModelPruning)
_REDUCE_DTYPES = ("float32", "bfloat16")


class FSDP2Strategy(ShardedCheckpoints, ModelParallelStrategy):
    """Shards any LightningModule with repeated blocks over all ranks, with ``fully_shard``.

    No ``configure_model`` is needed. The blocks are found, checkpointed, compiled and sharded one
    by one, in this order; what is left (embedding, last norm, head) is gathered once per step and
    stays whole for the loss, which reads the head's weight. Weights are the first rank's: those of
    a single process with the same seed. A module built under ``torch.device("meta")``, as the
    command line builds ``CausalLM``, is filled block by block, so that no host holds all of it.

    Weights and optimizer states are float32 shards; under ``bf16-mixed`` blocks compute with
    bfloat16 copies, gathered in bfloat16. Gradients of accumulated micro-batches are reduced once
    per step.

    Args:
        data_parallel_size: Ranks that a copy of the weights is spread over; ``"auto"`` is all,
            divided by the other sizes.
        tensor_parallel_size: Ranks that share every layer of a
            :class:`~lightning_llm.models.Transformer`: its heads, hidden units and vocabulary are
            split over them, the residual stream along the sequence. They read the same data.
        context_parallel_size: Ranks that share every sequence of a batch, for long ones: each
            computes at its own positions, and attends to the gathered keys and values of all. They
            read the same data, and weights are sharded over them too. For modules with
            ``compute_loss``, such as :class:`~lightning_llm.CausalLM`.
        replicate_size: Copies of the weights ("hybrid" sharding): usually the number of nodes, so
            that only gradients cross between them.
        reshard_after_forward: Drop a block's gathered weights after its forward pass, to gather
            them again in the backward pass; False keeps them, for less communication; a number of
            ranks keeps them spread over so many.
        reduce_dtype: Of gradients while they are summed over ranks.
        cpu_offload: Keep shards and optimizer states on the host.
        prefetch: Blocks gathered ahead of the one that computes; 0 leaves it to torch.
        reduce_every_micro_batch: Reduce gradients in every micro-batch of an accumulated step:
            slower, but whole gradients are never kept.
        compile: See :class:`~lightning_llm.strategies.SingleDeviceStrategy`.
        activation_checkpointing: As above.
        block_class: As above.
        save_distributed_checkpoint: True for a folder that every rank writes its shards into;
            False for one file, gathered on the first rank. Either loads into any number of ranks.
        process_group_backend: As in Lightning; chosen by the device.
        timeout: As in Lightning.

    Raises:
        ValueError: An option is unknown or out of range.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> Trainer(strategy=FSDP2Strategy(), devices=2, accelerator="cpu")  # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        data_parallel_size: int | Literal["auto"] = "auto",
        tensor_parallel_size: int = 1,
        context_parallel_size: int = 1,
        replicate_size: int = 1,
        reshard_after_forward: bool | int = True,
        reduce_dtype: Literal["float32", "bfloat16"] = "float32",
        cpu_offload: bool = False,
        prefetch: int = 0,
        reduce_every_micro_batch: bool = False,
        compile: bool | dict[str, Any] = False,
        activation_checkpointing: ActivationCheckpointing = "none",
        block_class: str | Sequence[str] | None = None,
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        if cpu_offload and process_group_backend is None and torch.cuda.is_available():
            process_group_backend = "cpu:gloo,cuda:nccl"  # norms of offloaded gradients
        super().__init__(
            data_parallel_size=data_parallel_size,
            tensor_parallel_size=tensor_parallel_size,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        problems = []
        if reduce_dtype not in _REDUCE_DTYPES:
            problems.append(f"reduce_dtype={reduce_dtype!r} must be one of {_REDUCE_DTYPES}")
        if replicate_size < 1:
            problems.append(f"replicate_size={replicate_size} must be at least 1")
        if tensor_parallel_size < 1:
            problems.append(f"tensor_parallel_size={tensor_parallel_size} must be at least 1")
        if context_parallel_size < 1:
            problems.append(f"context_parallel_size={context_parallel_size} must be at least 1")
        if prefetch < 0:
            problems.append(f"prefetch={prefetch} must not be negative")
        if problems:
            raise InvalidValueError("FSDP2Strategy: " + "; ".join(problems))
        self.tensor_parallel_size = tensor_parallel_size
        self.context_parallel_size = context_parallel_size
        self.replicate_size = replicate_size
        self.reshard_after_forward = reshard_after_forward
        self.reduce_dtype = reduce_dtype
        self.cpu_offload = cpu_offload
        self.prefetch = prefetch
        self.reduce_every_micro_batch = reduce_every_micro_batch
        self.blocks = BlockOptions(compile, activation_checkpointing, block_class)
        self._split: TensorParallel | None = None
        self._context: ContextParallel | None = None

    # ------------------------------------------------------------------ ranks

    @override
    def setup_environment(self) -> None:
        check_launch(self.cluster_environment, self.num_processes, self.num_nodes)
        self._setup_distributed()
        world, copies, split = self.world_size, self.replicate_size, self.tensor_parallel_size
        sharing = self.context_parallel_size
        given = self._data_parallel_size
        size = max(1, world // (copies * sharing * split)) if given == "auto" else int(given)
        if size * copies * sharing * split != world:
            raise InvalidValueError(
                f"data_parallel_size={given}, replicate_size={copies}, "
                f"context_parallel_size={sharing} and tensor_parallel_size={split} must multiply "
                f"to the number of ranks, {world}"
            )
        size *= sharing  # weights are sharded over ranks that share sequences, too
        if self._device_mesh is None:
            self._device_mesh = init_device_mesh(
                self.root_device.type,
                (copies, size, split),
                mesh_dim_names=("replicate", "data_parallel", "tensor_parallel"),
            )
            if size > 1 and split > 1:
                # torch sums over both at once, the norm of gradients say, where it finds this.
                self._device_mesh["data_parallel", "tensor_parallel"]._flatten()
        assert self.lightning_module is not None
        self.lightning_module._device_mesh = self._device_mesh

    @property
    @override
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        shards = self.device_mesh["data_parallel"]
        copy = self.device_mesh["replicate"].get_local_rank()
        readers = shards.size() // self.context_parallel_size
        return {
            "num_replicas": self.replicate_size * readers,
            "rank": copy * readers + shards.get_local_rank() // self.context_parallel_size,
        }

    # ------------------------------------------------------------------ set-up

    @override
    def setup(self, trainer: L.Trainer) -> None:
        assert self.accelerator is not None
        module = self.lightning_module
        assert module is not None
        self._check(module, trainer.callbacks)  # type: ignore[attr-defined]
        self.accelerator.setup(trainer)
        self.blocks.check_accumulation(trainer.accumulate_grad_batches)
        self.check_folders(trainer)
        if not is_sharded(module):
            self.precision_plugin.convert_module(module)  # sees plain weights
            self._shard(module)
        if self.context_parallel_size > 1:
            self._context = ContextParallel(module, self._context_mesh())
        self.blocks.apply(module, inside_hooks=True)
        self.model = module
        self.barrier()
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()
        if isinstance(self.precision_plugin, BF16MixedPrecision):
            # It looked at the weights, which may lie on the host.
            self.precision_plugin.device = self.root_device.type
        if trainer.state.fn == TrainerFn.FITTING and not self.cpu_offload:
            _optimizers_to_device(self.optimizers, self.root_device)

    def _context_mesh(self) -> DeviceMesh:
        """The ranks that share this one's sequences."""
        sharing, split = self.context_parallel_size, self.tensor_parallel_size
        return init_device_mesh(
            self.root_device.type,
            (self.world_size // (sharing * split), sharing, split),
            mesh_dim_names=("readers", "context_parallel", "tensor_parallel"),
        )["context_parallel"]

    def _check(self, module: L.LightningModule, guests: Sequence[L.Callback] = ()) -> None:
        """Refuse what would train wrongly, or not at all, once weights are sharded."""
        for guest in guests:
            if isinstance(guest, _NEED_WHOLE_WEIGHTS):
                raise InvalidValueError(
                    f"{type(guest).__name__} reads and writes whole weights, which no rank has "
                    f"under FSDP2Strategy; use DDPStrategy or SingleDeviceStrategy, or take the "
                    f"callback out"
                )
        if not module.automatic_optimization:
            raise InvalidValueError(
                f"{type(module).__name__} optimizes manually, which FSDP2Strategy cannot run: its "
                f"steps lie between a gathering and a sharding of the weights; use DDPStrategy"
            )
        plugin = self.precision_plugin
        if isinstance(plugin, MasterWeightsPrecision):
            raise InvalidValueError(
                "MasterWeightsPrecision cannot hold sharded weights, and need not: under "
                "FSDP2Strategy with BF16MixedPrecision(), or precision='bf16-mixed', the shards "
                "are float32 and the arithmetic is bfloat16"
            )
        if str(plugin.precision) not in ("32-true", "64-true", "bf16-mixed", "bf16-true"):
            raise InvalidValueError(
                f"FSDP2Strategy does not run with precision={plugin.precision!r}; use "
                f"'bf16-mixed', 'bf16-true' or '32-true'"
            )

    def _shard(self, module: L.LightningModule) -> None:
        mesh = self.device_mesh["data_parallel"]
        if self.replicate_size > 1:
            mesh = self.device_mesh["replicate", "data_parallel"]
        mixed = str(self.precision_plugin.precision) == "bf16-mixed"
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if mixed else None,
            reduce_dtype=getattr(torch, self.reduce_dtype)
            if "bf16" in str(self.precision_plugin.precision)
            else None,
            cast_forward_inputs=False,  # autocast does; rotary tables stay float32
        )
        offload = OffloadPolicy()
        if self.cpu_offload:
            offload = CPUOffloadPolicy(pin_memory=self.root_device.type == "cuda")
        blocks = find_blocks(module, self.blocks.block_class)
        if self.tensor_parallel_size > 1:
            self._split = TensorParallel(module, self.device_mesh["tensor_parallel"])
        with drawing(module):
            shard(
                module,
                blocks,
                self.root_device,
                reshard_after_forward=self.reshard_after_forward,
                split=None if self._split is None else self._split.split,
                mesh=mesh,
                mp_policy=policy,
                offload_policy=offload,
            )
        _update_properties(module, device=self.root_device)
        if self.prefetch:
            set_prefetch(blocks, self.prefetch)
        generate: Any = getattr(module, "generate", None)
        if callable(generate):
            module.generate = _with_whole_weights(self.whole_weights, generate)

    @override
    def teardown(self) -> None:
        self.blocks.undo()
        if self._context is not None:
            self._context.undo()
            self._context = None
        super().teardown()
        self.checkpoint_io.teardown()  # waits for a save in a thread

    # ------------------------------------------------------------------ steps

    @contextmanager
    @override
    def block_backward_sync(self) -> Iterator[None]:
        """Keep gradients on the rank until the last micro-batch of a step."""
        if self.reduce_every_micro_batch:
            yield
            return
        parts = sharded_parts(self._root())
        for part in parts:
            part.set_requires_gradient_sync(False, recurse=False)
        try:
            yield
        finally:
            for part in parts:
                part.set_requires_gradient_sync(True, recurse=False)

    @override
    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        with self.precision_plugin.train_step_context():
            return self._run("training_step", *args, **kwargs)

    @override
    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        with self.precision_plugin.val_step_context():
            return self._evaluate("validation_step", *args, **kwargs)

    @override
    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        with self.precision_plugin.test_step_context():
            return self._evaluate("test_step", *args, **kwargs)

    @override
    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        with self.precision_plugin.predict_step_context(), self._unshared():
            return self._evaluate("predict_step", *args, **kwargs)

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        """Within, every rank has all weights and runs the module on its own; all ranks enter."""
        if self._split is not None:
            mixed = str(self.precision_plugin.precision) == "bf16-mixed"
            whole = self._split.whole(torch.bfloat16 if mixed else None)
        else:
            whole = whole_weights(self._root())
        with whole, self._unshared():
            yield

    def _unshared(self) -> AbstractContextManager[None]:
        return nullcontext() if self._context is None else self._context.alone()

    def _evaluate(self, name: str, *args: Any, **kwargs: Any) -> Any:
        # Memory taken in inference mode could never be trained on.
        with torch.inference_mode(False), torch.no_grad():
            outputs = self._run(name, *args, **kwargs)
            # Otherwise what belongs to no block would stay whole, and be looked at by callbacks.
            self._root().reshard()
        return outputs

    def _run(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a step as the module's forward: the hooks around it gather what it reads."""
        module = self._root()

        def step(*inputs: Any, **options: Any) -> Any:
            module.__dict__.pop("forward")  # so that the step itself can call it
            return getattr(module, name)(*inputs, **options)

        module.forward = step
        try:
            return module(*args, **kwargs)
        finally:
            module.__dict__.pop("forward", None)

    def _root(self) -> Any:
        assert self.lightning_module is not None
        return self.lightning_module


def _with_whole_weights(
    whole: Callable[[], AbstractContextManager[None]], generate: Callable[..., Any]
) -> Any:
    @functools.wraps(generate)
    def gather_and_generate(*args: Any, **kwargs: Any) -> Any:
        with whole(), torch.inference_mode(False), torch.no_grad():
            return generate(*args, **kwargs)

    return gather_and_generate
