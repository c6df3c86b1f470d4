"""What the callbacks bring with them: no Hugging Face, of ours metrics and batches alone."""

from __future__ import annotations

import json
import subprocess
import sys

HUGGING_FACE = ["transformers", "datasets", "tokenizers", "safetensors", "huggingface_hub", "peft"]

# Hides packages from `import` and from the metadata by which Lightning and torchmetrics ask
# whether something is installed.
HIDE = """
import importlib.metadata, json, sys
hidden = set(json.loads(sys.argv[1]))
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
def hiding(lookup):
    def wrapper(name, *args):
        if name.replace("-", "_") in hidden:
            raise importlib.metadata.PackageNotFoundError(name)
        return lookup(name, *args)
    return wrapper
for name in ("distribution", "version", "metadata", "requires", "files"):
    setattr(importlib.metadata, name, hiding(getattr(importlib.metadata, name)))
"""


def modules_after(statements: str, hidden: list[str]) -> set[str]:
    script = HIDE + statements + "\nprint(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-c", script, json.dumps(hidden)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_hugging_face_is_not_loaded_beyond_what_lightning_loads() -> None:
    lightning = modules_after("import lightning.pytorch", hidden=[])
    ours = modules_after("import lightning_llm.callbacks", hidden=[]) - lightning
    assert not {name for name in ours if name.partition(".")[0] in HUGGING_FACE}
    parts = {".".join(name.split(".")[:2]) for name in ours if name.startswith("lightning_llm.")}
    allowed = "callbacks metrics batches _version errors runtime".split()
    assert parts <= {f"lightning_llm.{name}" for name in allowed}


def test_the_callbacks_work_where_hugging_face_is_not_installed() -> None:
    modules_after(
        """
import lightning.pytorch, torch, warnings
warnings.simplefilter("ignore")
from lightning_llm.callbacks import *
class Module(lightning.pytorch.LightningModule):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(5, 5)
    def training_step(self, batch, index):
        return self.table(batch["input_ids"]).logsumexp(-1).mean()
    def validation_step(self, batch, index):
        return {"logits": self.table(batch["input_ids"])} | texts
    def generate(self, prompts):
        return prompts
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
rows = [{"input_ids": torch.arange(4), "labels": torch.arange(4)}] * 4
texts = {"predictions": ["a b c d"], "references": ["a b c e"]}
monitors = [PerplexityMonitor(), BLEUMonitor(), SpeedMonitor(), SampleText(["a"])]
monitors.append(GarbageCollection())
run = lightning.pytorch.Trainer(
    max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
    log_every_n_steps=2, callbacks=[*monitors, HFExport("", export_fn=lambda *_: None)],
)
loader = torch.utils.data.DataLoader(rows)
run.fit(Module(), loader, loader)
assert {"val_perplexity", "val_bleu", "tokens_per_second"} <= set(run.callback_metrics)
""",
        hidden=HUGGING_FACE,
    )
