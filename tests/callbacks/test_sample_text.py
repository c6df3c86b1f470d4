"""SampleText on foreign modules and stand-ins for the loggers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import Bigram, loader, make_rows, trainer
from lightning.pytorch.loggers import CSVLogger, Logger

from lightning_llm.callbacks import SampleText

PROMPTS = ["def ", "a\nb"]


class Writer(Bigram):
    """Has the full signature of ``generate``."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[dict[str, Any]] = []

    def generate(
        self,
        prompts: list[str],
        *,
        max_new_tokens: int,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        seed: int | None,
    ) -> list[str]:
        options = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
        self.calls.append(options | {"top_k": top_k, "top_p": top_p})
        assert not self.training
        assert not torch.is_grad_enabled()
        return [f"<{len(prompt)}>" for prompt in prompts]


def fit(module: Any, sampler: SampleText, *, validation: bool = True, **options: Any) -> Any:
    run = trainer(callbacks=[sampler], **options)
    run.fit(module, loader(make_rows(2)), loader(make_rows(2)) if validation else None)
    return run


def test_samples_are_printed_after_each_validation(capsys: Any) -> None:
    module = Writer()
    sampler = SampleText(PROMPTS, max_new_tokens=5, temperature=0.5, top_k=7, top_p=0.9, seed=3)
    fit(module, sampler, max_epochs=2, num_sanity_val_steps=1)
    printed = capsys.readouterr().out
    for step in (2, 4):
        assert f"--- samples at step {step} ---\ndef <4>\na\nb<3>\n---\n" in printed
    assert printed.count("samples at step") == 2  # none in the sanity check
    options = {"max_new_tokens": 5, "temperature": 0.5, "top_k": 7, "top_p": 0.9, "seed": 3}
    assert module.calls == [options, options]


def test_every_n_validations(capsys: Any) -> None:
    module = Writer()
    fit(module, SampleText(PROMPTS, every_n_validations=2), max_epochs=4)
    assert len(module.calls) == 2
    assert "samples at step 4" in capsys.readouterr().out


def test_a_run_without_validation_is_sampled_at_its_end() -> None:
    module = Writer()
    fit(module, SampleText(PROMPTS), validation=False)
    assert len(module.calls) == 1


def test_so_is_a_run_after_one_that_was_validated() -> None:
    module, sampler = Writer(), SampleText(PROMPTS)
    fit(module, sampler)
    fit(module, sampler, validation=False)
    assert len(module.calls) == 2


def test_a_module_is_given_the_options_it_takes() -> None:
    class Few(Bigram):
        def generate(self, prompts: list[str], top_k: int = 0) -> list[str]:
            assert top_k == 4
            return prompts

    class Any_(Bigram):
        def generate(self, prompts: list[str], **options: Any) -> list[str]:
            assert set(options) == {"max_new_tokens", "temperature", "top_k", "top_p", "seed"}
            return prompts

    fit(Few(), SampleText(PROMPTS, top_k=4))
    fit(Any_(), SampleText(PROMPTS))


def test_generate_fn_takes_the_place_of_the_method(capsys: Any) -> None:
    def generate(module: Any, prompts: list[str], max_new_tokens: int) -> list[str]:
        assert isinstance(module, Bigram)
        return ["!" * max_new_tokens for _ in prompts]

    fit(Bigram(), SampleText(PROMPTS, max_new_tokens=3, generate_fn=generate))
    assert "def !!!\n" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:Found 1 module.s. in eval mode")
def test_modes_and_generators_are_left_alone() -> None:
    class Careless(Bigram):
        """Draws from every generator and leaves all modules in training mode."""

        def __init__(self) -> None:
            super().__init__()
            self.frozen = torch.nn.Dropout().eval()
            self.drawn: list[Any] = []

        def generate(self, prompts: list[str]) -> list[str]:
            self.drawn.append((torch.rand(1).item(), random.random(), np.random.rand()))
            self.train()
            return prompts

        def on_validation_end(self) -> None:
            assert not self.table.training

        def on_train_epoch_end(self) -> None:
            assert self.table.training
            assert not self.frozen.training

    def left(callbacks: list[Any]) -> tuple[float, float, float]:
        torch.manual_seed(1), random.seed(1), np.random.seed(1)
        run = trainer(callbacks=callbacks, max_epochs=2)
        run.fit(module := Careless(), loader(make_rows(2)), loader(make_rows(2)))
        if callbacks:
            assert module.drawn[0][0] == module.drawn[1][0]  # seeded alike each time
        return torch.rand(1).item(), random.random(), float(np.random.rand())

    assert left([SampleText(PROMPTS)]) == left([])


def test_samples_are_kept_beside_the_log(tmp_path: Path) -> None:
    fit(Writer(), SampleText(["é"]), max_epochs=2, logger=CSVLogger(tmp_path))
    lines = (tmp_path / "lightning_logs/version_0/samples.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 2, "epoch": 0, "prompt": "é", "text": "<1>"},
        {"step": 4, "epoch": 1, "prompt": "é", "text": "<1>"},
    ]


def test_without_a_logger_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fit(Writer(), SampleText(PROMPTS))
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:Experiment logs directory .* exists and is not empty")
def test_a_file_that_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, version=0)
    path = Path(logger.log_dir) / "samples.jsonl"
    path.mkdir(parents=True)
    with pytest.warns(UserWarning, match="Samples were not written to .*samples.jsonl"):
        fit(Writer(), SampleText(PROMPTS), logger=logger)


class Recorded(Logger):
    """A logger that only remembers the text it was given."""

    name, version = "recorded", 0

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.texts: list[Any] = []
        for name, value in attributes.items():
            setattr(self, name, value)

    def log_metrics(self, *_: Any, **__: Any) -> None: ...

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...


class Experiment:
    def __init__(self, method: str, texts: list[Any]) -> None:
        setattr(self, method, lambda *args, **kwargs: texts.append((args, kwargs)))


@pytest.mark.parametrize(
    ("method", "attributes", "expected"),
    [
        (
            "add_text",
            {},
            [
                (("samples/0", "    def <4>"), {"global_step": 2}),
                (("samples/1", "    a\n    b<3>"), {"global_step": 2}),
            ],
        ),
        ("log_text", {}, [(("def <4>\n\na\nb<3>",), {"step": 2})]),
        (
            "log_text",
            {"run_id": "7"},
            [(("7", "def <4>\n\na\nb<3>", "samples/step=2.txt"), {})],
        ),
    ],
    ids=["tensorboard", "comet", "mlflow"],
)
def test_experiments_that_show_text(method: str, attributes: Any, expected: Any) -> None:
    logger = Recorded(**attributes)
    logger.experiment = Experiment(method, logger.texts)
    fit(Writer(), SampleText(PROMPTS), logger=logger)
    assert logger.texts == expected


def test_weights_and_biases_gets_a_table() -> None:
    class Wandb(Recorded):
        def log_text(self, key: str, columns: Any, data: Any, step: int) -> None:
            self.texts.append((key, columns, data, step))

    logger = Wandb()
    fit(Writer(), SampleText(PROMPTS), logger=logger)
    rows = [[2, "def ", "<4>"], [2, "a\nb", "<3>"]]
    assert logger.texts == [("samples", ["step", "prompt", "text"], rows, 2)]


def test_a_module_that_cannot_generate_is_named_before_training() -> None:
    with pytest.raises(TypeError, match=r"Bigram does not have.*SampleText\(generate_fn=\.\.\.\)"):
        fit(Bigram(), SampleText(PROMPTS))


def test_testing_needs_no_generate() -> None:
    trainer(callbacks=[SampleText(PROMPTS)]).test(Bigram(), loader(make_rows(1)), verbose=False)


def test_a_wrong_number_of_texts_is_named() -> None:
    class Short(Bigram):
        def generate(self, prompts: list[str]) -> list[str]:
            return prompts[:1]

    with pytest.raises(ValueError, match="returned 1 texts for 2 prompts"):
        fit(Short(), SampleText(PROMPTS))
    # Two letters are no two continuations.
    one = SampleText(PROMPTS, generate_fn=lambda module, prompts: "ab")  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError, match="returned one text, 'ab', for a list of 2 prompts"):
        fit(Short(), one)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(TypeError, match=r"must be a list of strings; use \['def '\]"):
        SampleText("def ")
    with pytest.raises(ValueError, match="at least one entry"):
        SampleText([])
    with pytest.raises(ValueError, match="every_n_validations=0 must be"):
        SampleText(PROMPTS, every_n_validations=0)
