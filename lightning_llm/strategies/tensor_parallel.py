"""Splits the layers of a `Transformer` over ranks: heads, hidden units, rows of the vocabulary.

The plan is Megatron's (Shoeybi et al. 2019, https://arxiv.org/abs/1909.08053) with the norms and
the residual stream split along the sequence (Korthikanti et al. 2022,
https://arxiv.org/abs/2205.05198). It is carried out by ``torch.distributed.tensor.parallel``.

Shapes: B batch, T sequence, D model width, N ranks that share the layers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from lightning_llm.errors import InvalidValueError
from lightning_llm.models import Transformer, TransformerConfig
from lightning_llm.models.moe import MixtureOfExperts

# Inputs of `Attention.forward` after the first: two rotary tables, mask, cache, token values.
_WHOLE_INPUTS = 5


class TensorParallel:
    """Splits every `Transformer` inside a module over a one-dimensional mesh.

    Args:
        module: Holds the transformers, and no weights beside theirs.
        mesh: The ranks that share the layers.

    Raises:
        ValueError: The module or an option of its architecture cannot be split; all are named.
    """

    def __init__(self, module: nn.Module, mesh: DeviceMesh) -> None:
        self.module, self.mesh = module, mesh
        self.places = [
            (parent, name, child)
            for parent in module.modules()
            for name, child in parent.named_children()
            if isinstance(child, Transformer)
        ]
        self.transformers = list(dict.fromkeys(child for _, _, child in self.places))
        inside = {id(p) for model in self.transformers for p in model.parameters()}
        beside = [name for name, p in module.named_parameters() if id(p) not in inside]
        if beside or not self.transformers:
            raise InvalidValueError(
                f"tensor_parallel_size={mesh.size()} needs a lightning_llm Transformer that holds "
                f"all weights; {type(module).__name__} has {beside[:3]} beside it: use "
                f"tensor_parallel_size=1, which shards any module"
            )
        for model in self.transformers:
            problems = find_problems(model.config, mesh.size())
            if problems:
                raise InvalidValueError(
                    f"tensor_parallel_size={mesh.size()}: " + "; ".join(problems)
                )
        leave_out_advice()
        self._blocks = {block for model in self.transformers for block in model.blocks}
        self._first = {model.blocks[0] for model in self.transformers}

    def split(self, part: nn.Module) -> None:
        """Split a block, or, given the module, what belongs to no block. Weights are alike."""
        if part in self._blocks:
            _split_block(part, self.mesh)
            if part in self._first:
                part.register_forward_pre_hook(self._to_sequence)
        elif part is self.module:
            for model in self.transformers:
                _split_rest(model, self.mesh)

    @contextmanager
    def whole(self, dtype: torch.dtype | None) -> Iterator[None]:
        """Put whole transformers in the place of split ones; all ranks enter together.

        Args:
            dtype: Of the weights within; None leaves it.
        """
        twins = {model: _whole_twin(model, dtype) for model in self.transformers}
        for parent, name, model in self.places:
            parent._modules[name] = twins[model]
        try:
            yield
        finally:
            for parent, name, model in self.places:
                parent._modules[name] = model

    def _to_sequence(self, block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """From whole hidden states (B, T, D) to this rank's part of the sequence."""
        hidden, ranks = inputs[0], self.mesh.size()
        if hidden.shape[1] % ranks:
            raise InvalidValueError(
                f"tensor_parallel_size={ranks} splits sequences, but a batch has "
                f"{hidden.shape[1]} tokens in a row; make seq_len a multiple of {ranks}, or pad "
                f"rows to one"
            )
        if not isinstance(hidden, DTensor):
            hidden = DTensor.from_local(hidden, self.mesh, [Replicate()], run_check=False)
        return (hidden.redistribute(placements=[Shard(1)]).to_local(), *inputs[1:])


def find_problems(config: TransformerConfig, ranks: int) -> list[str]:
    """What of an architecture cannot be split over ``ranks``, each with the remedy."""
    problems = []
    divided = {"n_kv_heads": config.n_kv_heads, "hidden_dim": config.hidden_dim}
    for name, value in divided.items():
        assert value is not None
        if value % ranks:
            larger = -(-value // ranks) * ranks
            problems.append(
                f"{name}={value} is no multiple of {ranks}; use {name}={larger}, or a "
                f"tensor_parallel_size that divides {value}"
            )
    unsplit = {
        "attention_score": (config.attention_score, "dot"),
        "qk_norm_scope": (config.qk_norm_scope, "head"),
        "residual_scalars": (config.residual_scalars, False),
        "value_embeddings": (config.value_embeddings, type(config)().value_embeddings),
    }
    problems += [
        f"{name}={value!r} cannot be split; use tensor_parallel_size=1"
        for name, (value, plain) in unsplit.items()
        if value != plain
    ]
    if config.positions == "alibi":
        problems.append("positions='alibi' cannot be split; use tensor_parallel_size=1")
    return problems


def leave_out_advice() -> None:
    """Leave out torch's warning that what lies on two meshes is reduced or gathered over each.

    Here that is the gradient's norm, a single number, and whole weights for samples.
    """
    logger = logging.getLogger("torch.distributed.tensor._redistribute")
    if _is_no_advice not in logger.filters:
        logger.addFilter(_is_no_advice)


def _is_no_advice(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("While redistributing from")


def _split_block(block: nn.Module, mesh: DeviceMesh) -> None:
    """Attention by heads, feed-forward by hidden units, norms along the sequence."""
    whole = PrepareModuleInput(
        input_layouts=(Shard(1),),
        desired_input_layouts=(Replicate(),),
        use_local_output=False,  # so that the gradients of its readers are summed once
    )
    attention_input = PrepareModuleInput(
        input_layouts=(Shard(1), *[None] * _WHOLE_INPUTS),
        desired_input_layouts=(Replicate(), *[None] * _WHOLE_INPUTS),
        use_local_output=False,
    )
    plan: dict[str, Any] = {
        "attention": attention_input,
        "attention.qkv": ColwiseParallel(),
        "attention.out": RowwiseParallel(output_layouts=Shard(1)),
        "mlp": whole,
        "mlp.up": ColwiseParallel(),
        "mlp.gate": ColwiseParallel(),
        "mlp.down": RowwiseParallel(output_layouts=Shard(1)),
    }
    for name in ("attention_norm", "attention_post_norm", "mlp_norm", "mlp_post_norm"):
        plan[name] = SequenceParallel(use_local_output=True)
    for name in ("attention.q_norm", "attention.k_norm"):  # on (B, T, G / N, R or 1, Dh)
        plan[name] = SequenceParallel(sequence_dim=2, use_local_output=True)
    if isinstance(block.mlp, MixtureOfExperts):
        plan = {name: style for name, style in plan.items() if name.split(".")[0] != "mlp"}
        _split_experts(block.mlp, mesh)
    present = {name for name, child in block.named_modules() if child is not None}
    plan = {name: style for name, style in plan.items() if name in present}
    parallelize_module(block, mesh, plan, src_data_rank=None)


def _split_experts(mlp: MixtureOfExperts, mesh: DeviceMesh) -> None:
    """Every expert by hidden units, so that ranks have equally much to do, whoever is chosen.

    All ranks choose for all tokens. Each has an addend of the experts' outputs, and so of every
    gradient: of the tokens, and of the router.
    """
    for name, dim in (("up", 1), ("gate", 1), ("down", 2)):
        weight = getattr(mlp.experts, name)
        if weight is not None:
            part = distribute_tensor(weight.data, mesh, [Shard(dim)], src_data_rank=None)
            setattr(mlp.experts, name, nn.Parameter(part, weight.requires_grad))
    router = mlp.router.weight
    whole = DTensor.from_local(router.data, mesh, [Replicate()], run_check=False)
    mlp.router.weight = nn.Parameter(whole, router.requires_grad)

    def gather(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        share = DTensor.from_local(inputs[0], mesh, [Shard(1)], run_check=False)
        tokens = share.redistribute(placements=[Replicate()])
        return tokens.to_local(grad_placements=[Partial()])

    def scatter(_: nn.Module, inputs: Any, outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        addend, loss = outputs
        spread = DTensor.from_local(addend, mesh, [Partial()], run_check=False)
        share = spread.redistribute(placements=[Shard(1)]).to_local()
        one_of_many = loss / mesh.size()  # all ranks have the whole loss, and add its gradients up
        return share, one_of_many + (loss - one_of_many).detach()

    mlp.register_forward_pre_hook(gather)
    mlp.register_forward_hook(scatter)


def _split_rest(model: Transformer, mesh: DeviceMesh) -> None:
    """Embedding and head by rows of the vocabulary; hidden states are whole around the blocks."""
    learned = model.position_embedding is not None
    plan: dict[str, Any] = {
        # With learned positions a DTensor meets a DTensor.
        "embedding": RowwiseParallel(
            input_layouts=Replicate(), output_layouts=Replicate(), use_local_output=not learned
        ),
        "final_norm": SequenceParallel(),
    }
    if model.head is not None:
        plan["head"] = ColwiseParallel(output_layouts=Replicate())
    parallelize_module(model, mesh, plan, src_data_rank=None)
    model.final_norm.register_forward_hook(_gather_sequence)
    if model.position_embedding is not None:
        _replicate(model.position_embedding, mesh)


def _gather_sequence(norm: nn.Module, inputs: Any, output: DTensor) -> Tensor:
    return output.redistribute(placements=[Replicate()]).to_local()


def _replicate(module: nn.Module, mesh: DeviceMesh) -> None:
    """Make weights that are alike on all ranks, and token ids given to them, DTensors."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        spread = DTensor.from_local(parameter.data, mesh, [Replicate()], run_check=False)
        module.register_parameter(name, nn.Parameter(spread, parameter.requires_grad))

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(DTensor.from_local(x, mesh, [Replicate()], run_check=False) for x in inputs)

    module.register_forward_pre_hook(hook)


def _whole_twin(model: Transformer, dtype: torch.dtype | None) -> Transformer:
    """A transformer with the same weights, none of them split; all ranks call it."""
    state = {}
    for name, value in model.state_dict().items():
        value = value.detach()
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        state[name] = whole if dtype is None else whole.to(dtype)
    with torch.device("meta"):
        twin = type(model)(model.config)
    twin.load_state_dict(state, assign=True)
    return twin.requires_grad_(False).train(model.training)
