"""The fonts of the pictures: the first installed one that has the letters, and one warning."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from lightning_llm.reporting import read_run, write_pngs
from lightning_llm.reporting.fonts import FONT_FILES, Fonts, choose_font, missing_letters


class FakeFont:
    """Has some letters, and draws the same box in place of all others."""

    def __init__(self, letters: str) -> None:
        self.letters = letters

    def getmask(self, text: str) -> bytes:
        return text.encode() if text in self.letters else b"box"


ENGLISH, EUROPEAN, CHINESE = (FakeFont(letters) for letters in ("loss", "lossé", "loss实验"))


def loader(installed: dict[str, FakeFont], asked: list[str | None]) -> object:
    def load(name: str | None, size: int) -> FakeFont:
        asked.append(name)
        if name is None:
            return ENGLISH
        if name not in installed:
            raise OSError("cannot open resource")
        return installed[name]

    return load


def test_letters_that_are_boxes_are_missing() -> None:
    assert missing_letters("loss 实\n", ENGLISH) == {"实"}


@pytest.mark.parametrize(
    ("text", "font", "missing"),
    [
        ("loss", ENGLISH, set()),
        ("lossé", EUROPEAN, set()),
        ("实验 loss", CHINESE, set()),
        ("é实验", CHINESE, {"é"}),  # the fewest boxes
        ("ก", ENGLISH, {"ก"}),
    ],
)
def test_choice(text: str, font: FakeFont, missing: set[str]) -> None:
    assert choose_font(text, [ENGLISH, EUROPEAN, CHINESE]) == (font, missing)


def test_only_installed_fonts_and_none_for_english() -> None:
    asked: list[str | None] = []
    fonts = Fonts(loader({"simhei.ttf": CHINESE}, asked))
    assert fonts.of("loss", 11) is ENGLISH
    assert asked == [None]  # the system's folders are not searched
    assert fonts.of("实验", 11) is CHINESE
    searched = len(asked)
    assert fonts.of("实验", 11) is CHINESE
    assert len(asked) == searched  # nor again for the same name
    assert asked[1:] == list(FONT_FILES[: FONT_FILES.index("simhei.ttf") + 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fonts.warn()


def test_one_warning_names_letters_and_what_to_install() -> None:
    fonts = Fonts(loader({}, []))
    for text in ("实验", "实", "loss", "验"):
        assert fonts.of(text, 11) is ENGLISH
    with pytest.warns(UserWarning, match="no font here has '实验'.*fonts-noto-cjk") as caught:
        fonts.warn()
    assert len(caught) == 1


def test_pictures_of_a_chinese_run_warn_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("PIL", reason="Pillow draws the pictures")
    monkeypatch.setattr("lightning_llm.reporting.fonts.FONT_FILES", ())
    run = tmp_path / "实验"
    run.mkdir()
    (run / "metrics.csv").write_text("step,step_seconds,train_loss,lr\n0,1,2,3\n1,1,2,3\n")
    with pytest.warns(UserWarning, match="no font here has '实验'") as caught:
        files = write_pngs([read_run(run)], tmp_path / "png")
    assert (len(files), len(caught)) == (4, 1)
