"""BLEUMonitor on foreign modules, against sacrebleu on the whole corpus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import yaml
from foreign import Bigram, loader, make_rows, trainer
from lightning.pytorch.loggers import CSVLogger
from translating import Translator, answer, corpus_loader, make_corpus

from lightning_llm.callbacks import BLEUMonitor


def streams(rows: list[dict[str, Any]]) -> list[list[str]]:
    return [list(stream) for stream in zip(*(row["references"] for row in rows))]


def expected(rows: list[dict[str, Any]], tokenize: str = "13a") -> dict[str, float]:
    outputs = [answer(row["prompt"]) for row in rows]
    return {
        "val_bleu": sacrebleu.corpus_bleu(outputs, streams(rows), tokenize=tokenize).score,
        "val_chrf": sacrebleu.corpus_chrf(outputs, streams(rows)).score,
    }


def validate(module: Any, monitor: BLEUMonitor, *loaders: Any, **options: Any) -> dict[str, float]:
    run = trainer(callbacks=[monitor], **options)
    run.validate(module, list(loaders) if len(loaders) > 1 else loaders[0], verbose=False)
    return {name: value.item() for name, value in run.callback_metrics.items()}


@pytest.mark.parametrize("returns", ["nothing", "predictions", "both"])
@pytest.mark.parametrize("references", [1, 3])
def test_scores_are_sacrebleus_over_the_corpus(returns: str, references: int) -> None:
    rows = make_corpus(9, references=references)
    module = Translator(returns)
    found = validate(module, BLEUMonitor(), corpus_loader(rows, 4))
    assert found == pytest.approx(expected(rows), abs=1e-9)
    assert 5 < found["val_bleu"] < 95
    parts = [expected(rows[start : start + 4])["val_bleu"] for start in (0, 4, 8)]
    assert found["val_bleu"] != pytest.approx(sum(parts) / 3, rel=1e-3)  # no mean of batches
    assert bool(module.calls) == (returns == "nothing")


def test_test_stage_and_plain_string_references() -> None:
    rows = make_corpus(4)

    def collate(rows: Any) -> dict[str, Any]:
        references = [row["references"][0] for row in rows]
        return {"prompts": [row["prompt"] for row in rows], "references": references}

    run = trainer(callbacks=[BLEUMonitor()])
    run.test(Translator(), loader(rows, 2, collate_fn=collate), verbose=False)
    assert run.callback_metrics["test_bleu"].item() == pytest.approx(expected(rows)["val_bleu"])
    assert run.callback_metrics["test_chrf"].item() == pytest.approx(expected(rows)["val_chrf"])


def test_tokenizer_changes_the_score() -> None:
    rows = [
        {"prompt": "0: 我 爱 北京 天安门", "references": ["我爱北京天安门广场"]},
        {"prompt": "2: 今天天气很好", "references": ["今天天气真好"]},
    ]
    found = validate(Translator(), BLEUMonitor("zh"), corpus_loader(rows))
    assert found == pytest.approx(expected(rows, "zh"), abs=1e-9)
    assert abs(found["val_bleu"] - expected(rows)["val_bleu"]) > 5


def test_prompts_are_continued_in_batches_of_similar_length() -> None:
    module = Translator()
    validate(module, BLEUMonitor(batch_size=2), corpus_loader(make_corpus(5), 1))
    lengths = [[len(prompt) for prompt in call] for call in module.calls]
    assert [len(call) for call in lengths] == [2, 2, 1]
    flat = [length for call in lengths for length in call]
    assert flat == sorted(flat, reverse=True)


def test_generation_is_greedy_unless_asked_otherwise() -> None:
    module = Translator()
    validate(module, BLEUMonitor(), corpus_loader(make_corpus(2)))
    assert module.options == [{"max_new_tokens": 128, "temperature": 0.0, "num_beams": 1}]
    module = Translator()
    monitor = BLEUMonitor(
        max_new_tokens=9, num_beams=4, stop=["\n"], generate_options={"length_penalty": 0.6}
    )
    validate(module, monitor, corpus_loader(make_corpus(2)))
    [options] = module.options
    assert options == {
        "max_new_tokens": 9,
        "temperature": 0.0,
        "num_beams": 4,
        "stop": ["\n"],
        "length_penalty": 0.6,
    }


def test_generate_fn_takes_the_place_of_the_method() -> None:
    def generate(module: Any, prompts: list[str]) -> list[str]:
        assert isinstance(module, Translator)
        return [answer(prompt) for prompt in prompts]

    rows = make_corpus(4)
    module = Translator()
    found = validate(module, BLEUMonitor(generate_fn=generate), corpus_loader(rows))
    assert found == pytest.approx(expected(rows))
    assert not module.calls


def test_beams_are_not_silently_dropped() -> None:
    def greedy(module: Any, prompts: list[str]) -> list[str]:
        return prompts

    with pytest.raises(TypeError, match="num_beams"):
        validate(
            Translator(),
            BLEUMonitor(num_beams=2, generate_fn=greedy),
            corpus_loader(make_corpus(2)),
        )


def test_max_samples_takes_the_first_and_generates_no_others() -> None:
    rows = make_corpus(9)
    module = Translator()
    found = validate(module, BLEUMonitor(max_samples=5), corpus_loader(rows, 2))
    assert found == pytest.approx(expected(rows[:5]))
    assert sum(map(len, module.calls)) == 5


def test_each_dataloader_has_its_score_and_one_without_texts_has_none() -> None:
    class Mixed(Translator):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return None

    first, second = make_corpus(3), make_corpus(5, seed=1)
    texts = (corpus_loader(first), corpus_loader(second))
    found = validate(Mixed(), BLEUMonitor(), *texts, loader(make_rows(2)))
    wanted = {f"{name}/dataloader_idx_0": value for name, value in expected(first).items()}
    wanted |= {f"{name}/dataloader_idx_1": value for name, value in expected(second).items()}
    assert found == pytest.approx(wanted)


def test_the_sanity_check_generates_nothing_but_looks_for_texts() -> None:
    module = Translator()
    run = trainer(callbacks=[BLEUMonitor()], num_sanity_val_steps=1, limit_train_batches=1)
    rows = corpus_loader(make_corpus(3))
    run.fit(module, rows, rows)
    assert sum(map(len, module.calls)) == 3
    run = trainer(callbacks=[BLEUMonitor()], num_sanity_val_steps=1)
    with pytest.raises(ValueError, match="no texts to compare: validation_step returned"):
        run.fit(Bigram(), loader(make_rows(2)), loader(make_rows(2)))
    assert run.global_step == 0


@pytest.mark.parametrize(
    ("monitor", "match"),
    [
        (lambda: BLEUMonitor("klingon"), "tokenize='klingon' is not one of"),
        (lambda: BLEUMonitor(max_samples=0), "max_samples=0 must be at least 1"),
        (lambda: BLEUMonitor(num_beams=0), "num_beams=0 must be at least 1"),
    ],
)
def test_arguments_out_of_range(monitor: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        monitor()


def test_no_dataloader_with_texts() -> None:
    rows = loader(make_rows(2))
    with pytest.raises(ValueError, match=r"Return \{'predictions'"):
        validate(Bigram(), BLEUMonitor(), rows, rows)


def test_a_module_that_cannot_generate() -> None:
    class Mute(Bigram):
        def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    run = trainer(callbacks=[BLEUMonitor()], num_sanity_val_steps=1)
    with pytest.raises(TypeError, match=r"BLEUMonitor calls generate\(prompts, \.\.\.\)"):
        run.fit(Mute(), loader(make_rows(2)), corpus_loader(make_corpus(2)))
    assert run.global_step == 0  # found in the sanity check


def test_lists_of_references_turned_inside_out() -> None:
    rows = [{"prompts": "0: a", "references": ["a", "b"]} for _ in range(3)]
    with pytest.raises(ValueError, match=r"3 prompts and 2 entries of references .* collate_fn"):
        validate(Translator(), BLEUMonitor(), loader(rows, 3))


def test_signature_and_table_reach_console_and_logger(tmp_path: Path, capsys: Any) -> None:
    rows = make_corpus(3, references=2)
    logger = CSVLogger(tmp_path)
    monitor = BLEUMonitor(num_logged_samples=2)
    run = trainer(callbacks=[monitor], logger=logger, max_epochs=2)
    run.fit(Translator(), corpus_loader(rows), corpus_loader(rows))
    bleu = expected(rows)["val_bleu"]
    version = sacrebleu.__version__
    signature = f"nrefs:2|case:mixed|eff:no|tok:13a|smooth:exp|version:{version}"
    assert f"val_bleu = {bleu:.2f}  {signature}" in capsys.readouterr().out
    folder = Path(logger.log_dir)
    hparams = yaml.safe_load((folder / "hparams.yaml").read_text())
    assert hparams["val_bleu_signature"] == signature
    assert hparams["val_chrf_signature"].startswith("nrefs:2|case:mixed|eff:yes|nc:6|nw:0")
    lines = (folder / "bleu_samples.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 4  # two rows in each of two epochs
    assert json.loads(lines[1]) == {
        "step": 2,
        "epoch": 0,
        "source": rows[1]["prompt"],
        "reference": " | ".join(rows[1]["references"]),
        "output": answer(rows[1]["prompt"]),
    }


def test_sources_of_the_batch_are_shown(tmp_path: Path) -> None:
    class Sourced(Translator):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch | {"sources": [f"source of {p}" for p in batch["prompts"]]}

    logger = CSVLogger(tmp_path)
    validate(Sourced("both"), BLEUMonitor(), corpus_loader(make_corpus(1)), logger=logger)
    [line] = (Path(logger.log_dir) / "bleu_samples.jsonl").read_text("utf-8").splitlines()
    assert json.loads(line)["source"].startswith("source of 0: ")


def test_two_monitors_of_the_same_score_are_refused() -> None:
    run = trainer(callbacks=[BLEUMonitor(), BLEUMonitor(tokenize="zh")])
    with pytest.raises(ValueError, match="both log bleu and chrf; leave one of them out"):
        run.validate(Translator(), corpus_loader(make_corpus(2), 2), verbose=False)
