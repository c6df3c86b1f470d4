"""What an import costs, measured in a fresh interpreter: each part loads only what it needs."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

HUGGING_FACE = {"transformers", "datasets", "tokenizers", "safetensors", "huggingface_hub"}

# Everything a user may write after `from lightning_llm`; a name that moves breaks their code.
PROMISED = {
    "lightning_llm": "CausalLM HFCausalLM TextDataModule",
    "lightning_llm.models": "Transformer TransformerConfig KVCache",
    "lightning_llm.losses": "linear_cross_entropy",
    "lightning_llm.metrics": "Perplexity BitsPerByte CorpusBLEU",
    "lightning_llm.callbacks": (
        "PerplexityMonitor BLEUMonitor SpeedMonitor SampleText HFExport FiniteGuard"
    ),
    "lightning_llm.strategies": "SingleDeviceStrategy DDPStrategy",
    "lightning_llm.plugins": (
        "BF16MixedPrecision MasterWeightsPrecision Float8Precision AtomicCheckpointIO"
    ),
    "lightning_llm.optim": "AdamW Muon WarmupCosine WarmupStableDecay",
    "lightning_llm.data": (
        "TokenStore TokenStoreWriter ConcatWindows PackedDocuments TokenLoader "
        "TokenizerSpec train_tokenizer load_tokenizer encode_texts "
        "ChatDataModule TranslationDataModule QADataModule"
    ),
    "lightning_llm.generation": "generate",
}

RECORD = """
import json, os, sys
hidden = set(filter(None, sys.argv[2].split(",")))
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
environment = dict(os.environ)
exec(sys.argv[1])
assert dict(os.environ) == environment, "an import changed the environment"
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def libraries_after(statement: str, hidden: set[str] | None = None) -> set[str]:
    """Run a statement in a fresh interpreter and return the top-level modules then loaded.

    Args:
        statement: Python source.
        hidden: Packages that this interpreter must not find.
    """
    command = [sys.executable, "-W", "error", "-c", RECORD, statement, ",".join(hidden or ())]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout.splitlines()[-1]))


@pytest.mark.parametrize(("module", "names"), PROMISED.items(), ids=PROMISED.keys())
def test_promised_names_are_public(module: str, names: str) -> None:
    imported = importlib.import_module(module)
    missing = set(names.split()) - set(imported.__all__)
    assert not missing, f"{module}.__all__ lacks {sorted(missing)}"


def test_the_root_loads_nothing() -> None:
    loaded = libraries_after("import lightning_llm; lightning_llm.__version__")
    assert not loaded & ({"torch", "lightning", "numpy", "torchmetrics"} | HUGGING_FACE)


def test_an_unknown_name_of_the_root_is_an_attribute_error() -> None:
    import lightning_llm

    with pytest.raises(AttributeError, match="'lightning_llm' has no attribute 'Trainer'"):
        _ = lightning_llm.Trainer


def test_the_root_lists_its_lazy_names() -> None:
    import lightning_llm

    assert set(lightning_llm.__all__) <= set(dir(lightning_llm))
    assert set(lightning_llm._LAZY) | {"__version__"} == set(lightning_llm.__all__)


@pytest.mark.parametrize("part", ["models", "losses", "optim", "generation"])
def test_torch_only_parts_load_neither_lightning_nor_hugging_face(part: str) -> None:
    others = {"lightning", "pytorch_lightning", "torchmetrics", "triton"} | HUGGING_FACE
    loaded = libraries_after(f"import lightning_llm.{part}", hidden=others)
    assert not loaded & others


def test_token_stores_load_neither_lightning_nor_hugging_face() -> None:
    others = {"lightning", "pytorch_lightning", "torchmetrics"} | HUGGING_FACE
    names = "TokenStore, TokenStoreWriter, PackedDocuments, TokenLoader, train_tokenizer"
    loaded = libraries_after(f"from lightning_llm.data import {names}", hidden=others)
    assert not loaded & others
