"""A folder that appears under its name once it is whole and has been compared."""

from __future__ import annotations

import fnmatch
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning_llm.errors import ExistingFileError

# What exports consist of: of CausalLM, of transformers and of peft.
_EXPORTED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "adapter_model.bin",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates",
)
# Loading starts from these: they are removed first and come last.
_ENTRANCES = ("config.json", "adapter_config.json")


@contextmanager
def export_folder(directory: Path) -> Iterator[Path]:
    """A new folder to write an export to; at the end of the block it becomes ``directory``.

    An error in the block leaves what was there. An earlier export is replaced; other files in
    ``directory`` stay. The new folder lies beside ``directory``, so that renaming is enough, or
    within it where nothing can be written beside it.

    Raises:
        FileExistsError: ``directory`` is a file.
    """
    target = directory.resolve()
    if target.exists() and not target.is_dir():
        raise ExistingFileError(f"{target} is a file; choose a folder to export to")
    target.parent.mkdir(parents=True, exist_ok=True)
    inside = target.is_dir() and not os.access(target.parent, os.W_OK)
    beside = target if inside else target.parent
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=beside) as temporary:
        folder = Path(temporary, "export")
        folder.mkdir()
        yield folder
        for file in folder.rglob("*"):
            if file.is_file():
                sync(file)
        others = target.is_dir() and any(not _is_exported(path.name) for path in target.iterdir())
        if others or target.is_mount():
            _move_into(folder, target)
            return
        if target.exists():
            target.rename(Path(temporary, "replaced"))
        folder.rename(target)


def _move_into(folder: Path, target: Path) -> None:
    """Replace an earlier export file by file; half of it is never taken for a model."""
    earlier = [path for path in target.iterdir() if _is_exported(path.name)]
    for path in sorted(earlier, key=lambda path: path.name not in _ENTRANCES):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in sorted(folder.iterdir(), key=lambda path: path.name in _ENTRANCES):
        if path.is_dir() and (target / path.name).is_dir():
            shutil.rmtree(target / path.name)
        os.replace(path, target / path.name)


def _is_exported(name: str) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in _EXPORTED)


def sync(file: Path) -> None:
    """To the disk, so that the rename never outlives the contents."""
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
