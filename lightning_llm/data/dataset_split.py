"""Which Hugging Face dataset is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DatasetSplit:
    """One split of a Hugging Face dataset.

    Attributes:
        path: Local folder or name on the hub.
        name: Configuration of the dataset.
        split: Such as ``train``.
        revision: Branch, tag or commit on the hub.
        streaming: Read the rows over the network instead of downloading the files first.
    """

    path: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    streaming: bool = False

    def where(self) -> dict[str, Any]:
        """Return what readers of datasets want to know beside the path, by their names."""
        return {
            "name": self.name,
            "split": self.split,
            "revision": self.revision,
            "streaming": self.streaming,
        }

    def content_fingerprint(self) -> str:
        """Return a hash of the split, as far as its content can be known."""
        from lightning_llm.interop.hf.datasets import split_fingerprint

        return split_fingerprint(self.path, **self.where())
