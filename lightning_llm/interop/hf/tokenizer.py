"""A tokenizer as plain text, so that a checkpoint carries it and stays loadable without pickle."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_llm.errors import InvalidTypeError, InvalidValueError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# What a tokenizer remembers of its last call and of where it was loaded from: it would make equal
# tokenizers pack differently.
_TRANSIENT = {
    "tokenizer.json": ("padding", "truncation"),
    "tokenizer_config.json": ("is_local", "local_files_only", "name_or_path"),
}


def pack_tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The files that ``tokenizer.save_pretrained`` writes, as text.

    Args:
        tokenizer: A fast tokenizer (backed by the ``tokenizers`` library).

    Returns:
        File name -> contents: plain data, the chat template included. Equal for equal tokenizers.

    Raises:
        TypeError: The tokenizer is not a fast one.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InvalidTypeError(
            f"tokenizer is a {type(tokenizer).__name__}, which has no tokenizer.json; "
            "load it with AutoTokenizer.from_pretrained(..., use_fast=True)"
        )
    with tempfile.TemporaryDirectory() as folder:
        # Without the option, templates go to files of their own, one folder deep for named ones.
        tokenizer.save_pretrained(folder, save_jinja_files=False)
        paths = sorted(path for path in Path(folder).iterdir() if path.is_file())
        # sentencepiece's binary model repeats what tokenizer.json says.
        return {path.name: _stable_text(path) for path in paths if path.suffix != ".model"}


def _stable_text(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.name not in _TRANSIENT:
        return text
    content = json.loads(text)
    for key in _TRANSIENT[path.name]:
        if path.name == "tokenizer.json":
            content[key] = None  # the library requires the key
        else:
            content.pop(key, None)
    return json.dumps(content, ensure_ascii=False, indent=1)


def stored_tokenizer(
    name_or_path: str | Path, *, revision: str | None = None
) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside a model; None for a folder that holds none.

    Args:
        name_or_path: A folder, or a name on the hub.
        revision: Branch, tag or commit on the hub.
    """
    folder = Path(name_or_path)
    files = ("tokenizer.json", "tokenizer_config.json")
    if folder.is_dir() and not any((folder / name).is_file() for name in files):
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        name_or_path, revision=revision or "main", trust_remote_code=False
    )


def unpack_tokenizer(files: Mapping[str, str]) -> PreTrainedTokenizerBase:
    """Inverse of :func:`pack_tokenizer`.

    Args:
        files: File name -> contents. A checkpoint may come from anyone: names are checked, and
            nothing in them is executed.

    Raises:
        ValueError: A name is not a plain file name, or ``tokenizer.json`` is missing or broken.
    """
    from transformers import AutoTokenizer

    for name, text in files.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise InvalidValueError(f"packed tokenizer: {name!r} must map a file name to text")
        if not name or name.startswith(".") or any(mark in name for mark in "/\\:\0"):
            raise InvalidValueError(f"packed tokenizer: {name!r} is not a plain file name")
    if "tokenizer.json" not in files:
        raise InvalidValueError(f"packed tokenizer: no tokenizer.json among {sorted(files)}")
    try:
        json.loads(files["tokenizer.json"])
    except json.JSONDecodeError as error:
        raise InvalidValueError(
            f"packed tokenizer: tokenizer.json is not JSON ({error})"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            Path(folder, name).write_text(text, encoding="utf-8", newline="")
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
