"""Load a trained model from a checkpoint file or a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lightning_llm.errors import InvalidValueError, MissingFileError
from lightning_llm.language import CHECKPOINT_KEY
from lightning_llm.module import CausalLM
from lightning_llm.plugins.io import read_checkpoint
from lightning_llm.plugins.io.sealed_file import local_path
from lightning_llm.plugins.io.sharded import is_sharded, read_sharded

if TYPE_CHECKING:
    from lightning_llm.interop.hf.causal_lm import HFCausalLM


def load_trained(path: str | Path, *, device: str | None = None) -> CausalLM | HFCausalLM:
    """Return the module in evaluation mode, with its tokenizer.

    Nothing but the file is needed: it carries the configuration and the tokenizer. It is read as
    data, after its checksum, straight into the network.

    Args:
        path: A ``.ckpt`` file of this package, a ``.ckpt`` folder of shards, or a directory in the
            Hugging Face layout.
        device: Where to put the model; the first CUDA device, if there is one, by default.

    Raises:
        FileNotFoundError: Nothing is there.
        ValueError: The file is damaged, not a checkpoint of this package, or at a URL; or
            ``device`` is unknown.
    """
    target = _device(device)
    path = model_of_run(local_path(path))
    if is_sharded(path):
        # Weights alone, one tensor at a time; optimizer states stay on the disk.
        module = _from_contents(read_sharded(path, optimizers=False), path)
    elif path.is_dir():
        module = CausalLM.from_pretrained(path)
    else:
        module = _from_contents(read_checkpoint(path, mmap=True), path)
    return module.to(target).eval()


def model_of_run(path: Path, *, exported: bool = True) -> Path:
    """Return the model in the folder of a run, any other path as it is.

    Args:
        path: A checkpoint, a model folder, or the folder of a run.
        exported: Take the run's export, if there is one, before its checkpoints.

    Raises:
        FileNotFoundError: Nothing is there.
    """
    from lightning_llm.cli.resume import look_into, say

    if not path.exists():
        raise MissingFileError(f"checkpoint {path}: no such file or folder")
    if not path.is_dir() or is_sharded(path) or (path / "config.json").exists():
        return path
    exports = [file.parent for file in sorted(path.glob("*/config.json"))] if exported else []
    files = {file.resolve() for file in path.rglob("*.ckpt") if file.exists()}
    saved = [one for one in map(look_into, files) if CHECKPOINT_KEY in one.contents]
    newest = max(saved, key=lambda one: (one.step, one.path.stat().st_mtime_ns), default=None)
    found = exports[0] if exports else newest.path if newest is not None else path
    if found != path:
        say(f"loading {found}")
    return found


def _from_contents(checkpoint: dict[str, Any], path: Path) -> CausalLM | HFCausalLM:
    saved = checkpoint.get(CHECKPOINT_KEY)
    if saved is None:
        raise InvalidValueError(
            f"{path} was not written by CausalLM or HFCausalLM of lightning_llm: it has no "
            f"{CHECKPOINT_KEY!r} entry. Load it with the class that wrote it"
        )
    if "hf_config" in saved:
        from lightning_llm.interop.hf.causal_lm import restore_hf_causal_lm

        return restore_hf_causal_lm(checkpoint)
    with torch.device("meta"):
        module = CausalLM(saved["config"])
    weights = {
        name.removeprefix("model."): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith("model.")
    }
    module.model.load_state_dict(weights, assign=True)
    module.generation_config = dict(saved.get("generation_config") or {})
    if saved["tokenizer"] is not None:
        from lightning_llm.interop.hf import unpack_tokenizer

        module.tokenizer = unpack_tokenizer(saved["tokenizer"])
    return module


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidValueError(f"device {name!r} is not usable here: {error}") from error
    return device
