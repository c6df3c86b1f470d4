"""What a forward pass leaves in memory for the backward pass, found by running it on nothing.

A block is run once on fake tensors, which have shapes and no values, through the very code that
checkpoints it; what is still referenced afterwards is what training keeps.
"""

from __future__ import annotations

from dataclasses import dataclass

from lightning_llm.planning.fake_layers import (
    Sharing,
    autocast,
    block_inputs,
    block_length,
    fake_arithmetic,
    fake_block,
    fake_network,
    kinds_of_layers,
    mask_elements,
    network_inputs,
)
from lightning_llm.planning.living import Living, local
from lightning_llm.planning.run import Run
from lightning_llm.strategies.checkpointing import (
    ActivationCheckpointing,
    call_plain,
    checkpointed,
)

MODES: tuple[ActivationCheckpointing, ...] = ("none", "selective", "full")


@dataclass(frozen=True)
class Activations:
    """Bytes kept by one forward pass of one micro-batch.

    Attributes:
        tokens: Grow with the batch: of all blocks, embedding and last norm.
        weight_copies: Converted weights that autocast keeps for the backward pass.
        masks: Attention masks, which the layers share.
        largest_block: Of the block that keeps most without checkpointing: what exists again while
            one is repeated.
    """

    tokens: float
    weight_copies: float
    masks: float
    largest_block: float

    @property
    def kept(self) -> float:
        """All that lives from forward to backward."""
        return self.tokens + self.weight_copies + self.masks


def trace_activations(run: Run, mode: ActivationCheckpointing) -> Activations:
    """Activations of a run's ``CausalLM`` under a mode of checkpointing, on one rank.

    Raises:
        ValueError: Layers or sequences are to be shared by ranks that cannot share them.
    """
    config = run.module.model.config
    tokens = copies = largest = 0.0
    with fake_arithmetic(run) as sharing:
        for layers in kinds_of_layers(config):
            kept = _trace_block(run, layers[0], mode, sharing)
            plain = kept if mode == "none" else _trace_block(run, layers[0], "none", sharing)
            tokens += kept[0] * len(layers)
            copies += kept[1] * len(layers)
            largest = max(largest, sum(plain))
        if not sharing:
            # The embedding's output, which blocks do not make; the last norm's, and its scale.
            ends = float(run.tokens_per_rank * config.dim * (run.param_dtype.itemsize + 4))
        else:
            ends = _trace_ends(run, sharing)
    windows = {config.layer_window(layer) for layer in range(config.n_layers)}
    masks = sum(mask_elements(run, window) for window in windows) * run.numerics.compute.itemsize
    return Activations(tokens + ends, copies, masks, largest)


def _trace_block(
    run: Run, layer: int, mode: ActivationCheckpointing, sharing: Sharing
) -> tuple[float, float]:
    """Bytes that one call of a block leaves behind: that grow with the tokens, and of weights."""
    length = block_length(run)
    block = fake_block(run, layer, sharing)
    weights, inputs = list(block.parameters()), block_inputs(run, layer, length)
    with Living([*inputs, *weights]) as living:
        with autocast(run):
            result = checkpointed(call_plain, mode)(block, *inputs)
        found = living.storages(touched_only=run.parallelism.compile and mode == "none")
        output = result[0].untyped_storage()
        if all(storage is not output for storage, _ in found):
            found.append((output, result[0].shape))
    shapes = {tuple(local(weight).shape) for weight in weights}
    shapes |= {shape[::-1] for shape in shapes}
    grows = sum(s.nbytes() for s, shape in found if tuple(shape) not in shapes)
    fixed = sum(s.nbytes() for s, shape in found if tuple(shape) in shapes)
    return grows * run.seq_len / length, float(fixed)


def _trace_ends(run: Run, sharing: Sharing) -> float:
    """Bytes that embedding, last norm and the joining of the sequence leave behind."""
    network, inputs = fake_network(run, sharing), network_inputs(run)
    with autocast(run):
        network.backbone(**inputs)  # tables of positions are made once
    with Living([*inputs.values(), *network.parameters()]) as living:
        with autocast(run):
            hidden = network.backbone(**inputs)
        found = living.storages(touched_only=False)
    assert hidden.requires_grad
    return float(sum(storage.nbytes() for storage, _ in found))
