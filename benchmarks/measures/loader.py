"""`loader`: batches out of a token store, tokens/s on one core."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.pacing import Pacer
from benchmarks.plan import Pacing, Plan, against
from benchmarks.race import Task

PACE = Pacing(warmup=20, rounds=5, steps=200, quick={"warmup": 1, "rounds": 2, "steps": 2})
VOCAB = 50_257


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--tokens", type=int, default=1 << 26, help="size of the store")
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=16, help="rows of a batch")


def plan(args: Namespace, folder: Path) -> list[Plan]:
    """Write a store of random tokens, then plan the race."""
    from lightning_llm.data import TokenStoreWriter

    tokens = min(args.tokens, 1 << 18) if args.quick else args.tokens
    random = np.random.default_rng(1)
    lengths = random.integers(100, 2000, size=tokens // 100)
    lengths = lengths[: int(np.searchsorted(np.cumsum(lengths), tokens))]
    with TokenStoreWriter(folder / "store", vocab_size=VOCAB) as writer:
        for length in lengths:
            writer.add(random.integers(0, VOCAB, size=length, dtype=np.uint16))
    options = {"store": str(folder / "store"), "seq_len": args.seq_len, "batch": args.batch}
    tasks = [
        Task(label, f"{__name__}:run", {**options, "reader": label}, "cpu", args.threads)
        for label in READERS
    ]
    settings = {
        "name_parts": [f"T{args.seq_len}"],
        "tokens": int(lengths.sum()),
        "seq_len": args.seq_len,
        "batch": args.batch,
    }
    title = f"Loading: batches of {args.batch} x {args.seq_len:,} from {tokens / 1e6:.0f} M tokens"
    pace, baselines = PACE.resolve(args), against("ours", tasks)
    return [Plan("loader", title, "tokens/s", tasks, pace, settings, baselines)]


def run(options: dict[str, Any], pacer: Pacer) -> None:
    """Read batches; each reader yields (inputs, targets), forever."""
    pacer.units_per_step = options["batch"] * options["seq_len"]
    reader = READERS[options["reader"]](
        Path(options["store"]), options["seq_len"], options["batch"]
    )
    for _, (inputs, targets) in zip(range(pacer.total_steps), reader):
        assert inputs.shape == targets.shape == (options["batch"], options["seq_len"])
        pacer.step_done()


Pair = tuple[Tensor, Tensor]


def _ours(folder: Path, seq_len: int, batch: int, mask_documents: bool = False) -> Iterator[Pair]:
    from lightning_llm.data import TokenStore
    from lightning_llm.data.loader import TokenLoader
    from lightning_llm.data.packing import ConcatWindows

    rows = ConcatWindows(TokenStore(folder), seq_len, mask_documents=mask_documents)
    loader = TokenLoader(rows, micro_batch_size=batch, shuffle=True, drop_last=True)
    while True:
        for content in loader:
            yield content["input_ids"], content["shift_labels"]
        loader.set_epoch(loader.epoch + 1)


def _ours_documents(folder: Path, seq_len: int, batch: int) -> Iterator[Pair]:
    return _ours(folder, seq_len, batch, mask_documents=True)


def _random_windows(folder: Path, seq_len: int, batch: int) -> Iterator[Pair]:
    """Random places of the file, one slice for each row, as small training scripts do."""
    tokens = _memory_map(folder)
    while True:
        places = torch.randint(len(tokens) - seq_len, (batch,)).tolist()
        rows = [torch.from_numpy(tokens[i : i + seq_len + 1].astype(np.int64)) for i in places]
        yield torch.stack([row[:-1] for row in rows]), torch.stack([row[1:] for row in rows])


class _Windows(torch.utils.data.Dataset[Pair]):
    """Row i of the file, one at a time."""

    def __init__(self, tokens: np.ndarray, seq_len: int) -> None:
        self.tokens, self.seq_len = tokens, seq_len

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.seq_len

    def __getitem__(self, index: int) -> Pair:
        start = index * self.seq_len
        row = torch.from_numpy(self.tokens[start : start + self.seq_len + 1].astype(np.int64))
        return row[:-1], row[1:]


def _data_loader(folder: Path, seq_len: int, batch: int, workers: int = 0) -> Iterator[Pair]:
    loader = torch.utils.data.DataLoader(
        _Windows(_memory_map(folder), seq_len),
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
    )
    while True:
        yield from loader


def _data_loader_workers(folder: Path, seq_len: int, batch: int) -> Iterator[Pair]:
    return _data_loader(folder, seq_len, batch, workers=2)


def _hugging_face(folder: Path, seq_len: int, batch: int) -> Iterator[Pair]:
    """An Arrow table of rows, read through torch's format."""
    from datasets import Dataset

    tokens = _memory_map(folder)
    count = min(4096, (len(tokens) - 1) // seq_len)
    rows = tokens[: count * seq_len].astype(np.int32).reshape(count, seq_len)
    table = Dataset.from_dict({"input_ids": list(rows)}).with_format("torch")
    loader = torch.utils.data.DataLoader(
        table,  # type: ignore[arg-type]
        batch_size=batch,
        shuffle=True,
        drop_last=True,
    )
    while True:
        for content in loader:
            yield content["input_ids"], content["input_ids"]


def _memory_map(folder: Path) -> np.ndarray:
    return np.memmap(folder / "tokens.bin", dtype=np.uint16, mode="r")


READERS: dict[str, Callable[[Path, int, int], Iterator[Pair]]] = {
    "ours": _ours,
    "ours_documents": _ours_documents,
    "random_windows": _random_windows,
    "data_loader": _data_loader,
    "data_loader_2_workers": _data_loader_workers,
    "datasets": _hugging_face,
}
