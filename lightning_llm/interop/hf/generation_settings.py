"""``generation_config.json``: read as it is, and written with every id that ends a text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_llm.errors import InvalidValueError
from lightning_llm.generation.ends import id_list, text_ends

_FILE = "generation_config.json"
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def stored_generation_config(
    name_or_path: str | Path, *, revision: str | None = None
) -> dict[str, Any]:
    """Return the generation settings beside a model, every field as it is stored.

    Without such a file they are the special ids of ``config.json``, as for ``transformers``.

    Args:
        name_or_path: A folder, or a name on the hub.
        revision: Branch, tag or commit on the hub.

    Raises:
        ValueError: The file is not a JSON object.
    """
    settings = _read(name_or_path, _FILE, revision)
    if settings is not None:
        return settings
    config = _read(name_or_path, "config.json", revision) or {}
    config = {**(config.get("text_config") or {}), **config}
    return {name: config[name] for name in _IDS if config.get(name) is not None}


def generation_settings(generation_config: Mapping[str, Any] | None, tokenizer: Any) -> Any:
    """Return what to write: the settings as they were, and every id that ends a text.

    Args:
        generation_config: What came with the model, or None.
        tokenizer: Of the model, or None; its ids are added where the settings have none.
    """
    settings = dict(generation_config or {})
    ends = text_ends(tokenizer, settings)
    if set(ends) != set(id_list(settings.get("eos_token_id"))):
        settings["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    for name in ("bos_token_id", "pad_token_id"):
        value = getattr(tokenizer, name, None)
        if value is not None:
            settings.setdefault(name, value)
    return settings


def write_generation_config(folder: str | Path, settings: Mapping[str, Any]) -> None:
    """Write ``generation_config.json`` into a folder, and its ends into ``config.json`` there."""
    _write(Path(folder, _FILE), settings)
    path = Path(folder, "config.json")
    config, ends = json.loads(path.read_text(encoding="utf-8")), settings.get("eos_token_id")
    if ends is not None and config.get("eos_token_id", ends) != ends:
        _write(path, {**config, "eos_token_id": ends})


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read(name_or_path: str | Path, file: str, revision: str | None) -> dict[str, Any] | None:
    path: Any = Path(name_or_path, file)
    if not Path(name_or_path).is_dir():
        from transformers.utils import cached_file

        try:
            path = cached_file(str(name_or_path), file, revision=revision or "main")
        except OSError:  # no such file, or nobody to ask for it
            path = None
    if path is None or not Path(path).is_file():
        return None
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InvalidValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise InvalidValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content
