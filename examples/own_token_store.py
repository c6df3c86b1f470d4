"""The token store and the packing alone: ids of your own encoder, written once, read as rows.

Documents are Python files, ids their bytes, 256 ends a document. The store is memory-mapped,
checksummed, and whole or not there; packing puts several documents into a row that do not see
each other. `CausalLM` takes the loader as it is; so does any other loop.

    python examples/own_token_store.py --steps 100
"""

from __future__ import annotations

import math
import sysconfig
import tempfile
from pathlib import Path

import lightning.pytorch as L
import numpy as np
from jsonargparse import auto_cli

from lightning_llm import CausalLM
from lightning_llm.callbacks import TokenProgressBar
from lightning_llm.data import PackedDocuments, TokenLoader, TokenStore, TokenStoreWriter
from lightning_llm.models import TransformerConfig

END = 256


# --8<-- [start:write]
def write_store(folder: Path, files: list[Path]) -> TokenStore:
    """Encode the files, one document each, and open the store that comes of it."""
    with TokenStoreWriter(folder, vocab_size=257) as writer:
        for file in files:
            ids = np.frombuffer(file.read_bytes(), dtype=np.uint8).astype(np.int64)
            writer.add(np.append(ids, END))
    return TokenStore(folder)


# --8<-- [end:write]


def main(steps: int = 100) -> dict[str, float]:
    """Write two stores, look at one, and train on both.

    Args:
        steps: Optimizer steps.
    """
    L.seed_everything(1, verbose=False)
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-d]*.py"))
    with tempfile.TemporaryDirectory() as folder:
        # --8<-- [start:pack]
        train = write_store(Path(folder, "train"), files[3:])
        val = write_store(Path(folder, "val"), files[:3])
        rows = PackedDocuments(train, seq_len=256)  # best fit: whole documents side by side
        train_loader = TokenLoader(rows, micro_batch_size=8, shuffle=True)
        val_loader = TokenLoader(PackedDocuments(val, seq_len=256), micro_batch_size=8)
        # --8<-- [end:pack]
        print(f"{len(train)} documents, {train.num_tokens:,} tokens of {train.dtype}")
        print(f"{len(rows)} rows, {100 * rows.fill_fraction:.1f} % filled")
        print({name: tuple(tensor.shape) for name, tensor in next(iter(train_loader)).items()})
        model = CausalLM(
            TransformerConfig(vocab_size=257, n_layers=2, dim=128, n_heads=4, max_seq_len=256)
        )
        trainer = L.Trainer(
            max_steps=steps,
            val_check_interval=steps,
            check_val_every_n_epoch=None,
            log_every_n_steps=20,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            callbacks=[TokenProgressBar()],
        )
        trainer.fit(model, train_loader, val_loader)
    perplexity = math.exp(trainer.callback_metrics["val_loss"])
    print(f"validation perplexity {perplexity:.2f} per byte")
    return {"perplexity": perplexity, "fill": rows.fill_fraction, "tokens": train.num_tokens}


if __name__ == "__main__":
    auto_cli(main)
