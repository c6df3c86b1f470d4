"""One of two ranks: a NaN comes to rank 1 only; skipped first, then raised."""

from __future__ import annotations

import os
import warnings

import torch

from lightning_llm.callbacks import FiniteGuard
from lightning_llm.callbacks.finite_guard import NonFiniteError
from runs import Net, batches, loader, trainer

rank = int(os.environ["RANK"])
data = batches(12)[rank::2]
good = [x for i, x in enumerate(data) if i != 2]
bad = [x * torch.nan if i == 2 and rank == 1 else x for i, x in enumerate(data)]
options = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False}

without = Net()
trainer(**options).fit(without, loader(good))
skipped = Net()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    trainer(**options, callbacks=[FiniteGuard("skip")]).fit(skipped, loader(bad))
pairs = zip(without.state_dict().values(), skipped.state_dict().values(), strict=True)
print("weights as without the step:", all(torch.equal(a, b) for a, b in pairs))
try:
    trainer(**options, callbacks=[FiniteGuard()]).fit(Net(), loader(bad))
except NonFiniteError as error:
    print(error)
torch.distributed.destroy_process_group()
