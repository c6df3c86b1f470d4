"""Canaries: the private names of Lightning on which the package stands are still there."""

from __future__ import annotations

import inspect

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.tuner import batch_size_scaling, lr_finder

from lightning_llm.runtime.lightning_api import on_the_class_only, undoes_search


def test_model_checkpoint_saves_by_these_methods() -> None:
    callback = ModelCheckpoint()
    assert callback._last_global_step_saved == 0
    assert callback._last_checkpoint_saved == ""
    for method in ("_save_topk_checkpoint", "_save_last_checkpoint"):
        parameters = inspect.signature(getattr(callback, method)).parameters
        assert list(parameters) == ["trainer", "monitor_candidates"]
    assert list(inspect.signature(callback._monitor_candidates).parameters) == ["trainer"]


def test_the_loop_tells_whether_it_accumulates() -> None:
    trainer = Trainer(accelerator="cpu", logger=False, accumulate_grad_batches=2)
    assert isinstance(trainer.fit_loop._should_accumulate(), bool)
    assert trainer.fit_loop.epoch_loop._batches_that_stepped == 0


def test_a_method_of_the_class_alone_says_so() -> None:
    class Loaded:
        @on_the_class_only
        def load(cls) -> str:
            return cls.__name__

    assert Loaded.load() == "Loaded"
    with pytest.raises(TypeError, match="cannot be called on an instance"):
        Loaded().load()


def test_finders_name_the_checkpoint_they_go_back_to() -> None:
    assert 'f".lr_find_{uuid.uuid4()}.ckpt"' in inspect.getsource(lr_finder)
    assert 'f".scale_batch_size_{uuid.uuid4()}.ckpt"' in inspect.getsource(batch_size_scaling)
    trainer = Trainer(accelerator="cpu", logger=False)
    assert not undoes_search(trainer)
    trainer.ckpt_path = "runs/.lr_find_1.ckpt"
    assert undoes_search(trainer)
