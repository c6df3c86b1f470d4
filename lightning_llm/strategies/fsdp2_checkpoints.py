"""How `FSDP2Strategy` saves and loads: a folder of shards, or one file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_llm.errors import InvalidTypeError, UnsupportedError
from lightning_llm.plugins.io.atomic import AtomicCheckpointIO
from lightning_llm.plugins.io.sealed_file import local_path, read_checkpoint
from lightning_llm.plugins.io.sharded import ShardedCheckpoint, weight_key
from lightning_llm.plugins.io.sharded_save import save_sharded
from lightning_llm.plugins.io.snapshot import snapshot
from lightning_llm.strategies.sharded_state import (
    copy_whole,
    named_state,
    restore_from_shards,
    restore_from_whole,
    whole_state,
    without_tensors,
)
from lightning_llm.strategies.sharding import gathered_state


class ShardedCheckpoints(ModelParallelStrategy):
    """Checkpoints of a module whose weights are sharded; either kind loads into any layout."""

    _source: ShardedCheckpoint | None = None
    _saving_ranks: dist.ProcessGroup | None = None

    @property
    @override
    def lightning_restore_optimizer(self) -> bool:
        return True  # after the module has looked at the checkpoint, like its weights

    # ------------------------------------------------------------------ saving

    def check_folders(self, trainer: Trainer) -> None:
        """Refuse at the start a checkpoint callback that is to write to an address.

        Raises:
            ValueError: One is; it is named.
        """
        for callback in trainer.checkpoint_callbacks:
            local_path(getattr(callback, "dirpath", None) or "")

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Shards, or, for one file, whole tensors on the first rank and nothing on the others."""
        assert self.lightning_module is not None
        if self._save_distributed_checkpoint:
            return self.lightning_module.state_dict()
        return gathered_state(self.lightning_module)

    @override
    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """By parameter name with shards, or, for one file, as the optimizer itself would."""
        assert self.lightning_module is not None
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer._optimizer
        if self._save_distributed_checkpoint:
            return named_state(optimizer, self.lightning_module)
        return whole_state(optimizer, self.lightning_module, keep=self.is_global_zero)

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; all ranks take part.

        Raises:
            OSError: It could not be written; what had the name before is untouched.
            TypeError: ``storage_options`` is given, which means nothing for local files.
            ValueError: The path is a URL.
        """
        if storage_options is not None:
            raise InvalidTypeError(
                f"storage_options={storage_options!r}: FSDP2Strategy writes local files and takes "
                "none"
            )
        path = local_path(self.broadcast(filepath))
        if not self._save_distributed_checkpoint:
            Strategy.save_checkpoint(self, checkpoint, path)
            self.barrier("save_checkpoint")
            return
        if isinstance(self.checkpoint_io, AtomicCheckpointIO):
            self.checkpoint_io.saves_to(path)
        weights = checkpoint.pop("state_dict")
        tensors = {weight_key(k): v.detach() for k, v in weights.items() if isinstance(v, Tensor)}
        plain = {**checkpoint}
        plain["state_dict"] = {k: v for k, v in weights.items() if not isinstance(v, Tensor)}
        if "optimizer_states" in checkpoint:
            plain["optimizer_states"] = []
            for index, state in enumerate(checkpoint["optimizer_states"]):
                rest, own = without_tensors(state, index)
                plain["optimizer_states"].append(rest)
                tensors |= own
        self._save(tensors, plain, path)

    def _save(self, tensors: dict[str, Tensor], plain: dict[str, Any], path: Path) -> None:
        """Write a folder, in a thread where the checkpoint plugin is asynchronous."""
        if not self._in_background():
            save_sharded(tensors, plain, path)
            return
        background = self.checkpoint_io.background  # type: ignore[attr-defined]
        background.wait()
        if self._saving_ranks is None:
            # Of their own: training goes on to use the others, from another thread.
            self._saving_ranks = dist.new_group(backend="gloo", timeout=self._timeout)
        group = self._saving_ranks
        copied, rest = snapshot(tensors), snapshot(plain)
        background.start(lambda: save_sharded(copied, rest, path, group), path.name)

    def _in_background(self) -> bool:
        return bool(getattr(self.checkpoint_io, "asynchronous", False))

    # ------------------------------------------------------------------ loading

    @override
    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Open a checkpoint of either kind; weights follow once the module has looked at it.

        Raises:
            DamagedCheckpointError: It is not what was written.
        """
        path = Path(self.broadcast(checkpoint_path))
        if self._in_background():
            self.checkpoint_io.background.wait()  # type: ignore[attr-defined]
        self._source = None
        if not path.is_dir():
            if weights_only is False:
                return self.checkpoint_io.load_checkpoint(path, weights_only=False)
            return read_checkpoint(path, mmap=True)  # each rank reads the shards it holds
        self._source = ShardedCheckpoint(path)
        self._source.verify(self.global_rank, self.world_size)
        self.barrier("load_checkpoint")
        return {**self._source.plain, "state_dict": self._source.weights()}

    @override
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Fill the shards of the weights.

        Raises:
            RuntimeError: Names or shapes differ and loading is strict; they are listed.
        """
        assert self.lightning_module is not None
        state = self.lightning_module.state_dict()
        own = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        saved = checkpoint["state_dict"]
        missing = sorted(own.keys() - saved.keys())
        surplus = sorted(saved.keys() - state.keys())
        if strict and (missing or surplus):
            raise UnsupportedError(
                f"the checkpoint is of another model: missing {missing[:5]}, left over "
                f"{surplus[:5]}"
            )
        shared = {name: value for name, value in own.items() if name in saved}
        differing = [
            f"{name}: {tuple(_shape(saved[name]))} in the checkpoint, {tuple(value.shape)} here"
            for name, value in shared.items()
            if _shape(saved[name]) != value.shape
        ]
        if differing:
            raise UnsupportedError("weights have other shapes: " + "; ".join(differing[:5]))
        if self._source is not None:
            with torch.no_grad():
                self._source.load({weight_key(k): v.detach() for k, v in shared.items()})
            return
        for name, value in shared.items():
            copy_whole(value, saved[name])

    @override
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Fill the shards of the optimizers' states.

        Raises:
            ValueError: An optimizer has other parameters than the saved one.
        """
        assert self.lightning_module is not None
        for index, optimizer in enumerate(self.optimizers):
            if isinstance(optimizer, LightningOptimizer):
                optimizer = optimizer._optimizer
            if self._source is not None:
                restore_from_shards(optimizer, self.lightning_module, self._source, index)
            else:
                saved = checkpoint["optimizer_states"][index]
                restore_from_whole(optimizer, self.lightning_module, saved)
        self._source = None


def _shape(stored: Any) -> torch.Size:
    """Of a tensor, or of its entry in a folder's index."""
    return stored.shape if isinstance(stored, Tensor) else stored.size
