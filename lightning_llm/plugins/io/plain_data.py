"""What could be saved but not loaded again without running code."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from lightning_llm.errors import InvalidTypeError


def check_plain_data(values: Mapping[str, Any], where: str) -> None:
    """Refuse values that a checkpoint of plain data cannot hold.

    Args:
        values: By name.
        where: What holds them, for the message.

    Raises:
        TypeError: Some cannot be loaded with ``weights_only=True``, or not be saved at all.
    """
    problems = []
    for name, value in values.items():
        buffer = io.BytesIO()
        try:
            torch.save(value, buffer)
            buffer.seek(0)
            needed = ", ".join(get_unsafe_globals_in_checkpoint(buffer))
        except Exception as error:
            needed = f"{type(error).__name__}: {error}"
        if needed:
            problems.append(f"{name}={value!r} ({needed})")
    if problems:
        raise InvalidTypeError(
            f"{where} hold values that a checkpoint could not be resumed with: "
            f"{'; '.join(problems)}. Save plain data (str(path), asdict(config)), or leave them "
            "out with save_hyperparameters(ignore=[...])"
        )
