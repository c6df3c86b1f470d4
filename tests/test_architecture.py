"""The shape of the code base: who imports whom, and what is public.

Read from the source with `ast`, so a broken rule is found even in code no other test runs.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_llm"
SOURCES = sorted(PACKAGE.rglob("*.py"))

HUGGING_FACE = frozenset({"transformers", "datasets", "tokenizers", "safetensors", "peft"})
# Never at module level: slow to import, or used by one path only.
LAZY_ONLY = HUGGING_FACE | {"pyarrow", "zstandard", "sacrebleu", "huggingface_hub", "omegaconf"}


@dataclass(frozen=True)
class Tier:
    """What one part of the package may import.

    Attributes:
        parts: Other parts of the package.
        libraries: Third-party packages besides torch.
        lazy_parts: Parts that may be imported inside functions only.
        lazy_libraries: Third-party packages that may be imported inside functions only.
    """

    parts: frozenset[str] = frozenset()
    libraries: frozenset[str] = frozenset()
    lazy_parts: frozenset[str] = frozenset()
    lazy_libraries: frozenset[str] = frozenset()


def tier(parts: str = "", libraries: str = "", lazy_parts: str = "", lazy: str = "") -> Tier:
    """Build a row of the table from space-separated names."""
    split = (frozenset(names.split()) for names in (parts, libraries, lazy_parts, lazy))
    return Tier(*split)


ALL_BUT_CLI = "models losses optim generation metrics callbacks plugins strategies data interop"
TIERS = {
    "errors": tier(),  # which every part may import
    "batches": tier(),
    "runtime": tier("batches", "lightning torchmetrics"),
    "models": tier(),
    # Triton comes with torch where it can be used; its one file is imported on the way to a GPU.
    "losses": tier(libraries="triton", lazy="liger_kernel cut_cross_entropy"),
    "optim": tier(),
    "generation": tier("models"),
    "metrics": tier(libraries="torchmetrics", lazy="sacrebleu"),
    "reporting": tier(lazy="PIL"),
    "callbacks": tier(
        "batches metrics reporting", "lightning torchmetrics", lazy_parts="strategies"
    ),
    "plugins": tier(libraries="lightning"),
    "strategies": tier("batches models plugins", "lightning"),
    # Lightning in the datamodules alone: see test_datasets_work_without_lightning.
    "data": tier(
        "batches",
        "numpy lightning filelock tqdm",
        lazy_parts="interop generation",
        lazy="transformers tokenizers tiktoken pyarrow zstandard",
    ),
    "steps": tier("batches callbacks", "lightning"),
    "language": tier("batches steps losses optim generation", "lightning", "interop plugins"),
    "module": tier("batches language losses models", "lightning", "generation interop strategies"),
    "interop": tier(
        "batches models losses optim metrics generation data language module",
        "numpy lightning tqdm",
        lazy_parts="strategies",
        lazy="transformers datasets tokenizers safetensors peft huggingface_hub pyarrow",
    ),
    "diagnostics": tier("batches callbacks strategies", "lightning"),
    "planning": tier("models losses callbacks plugins strategies", "lightning"),
    "cli": tier(
        f"{ALL_BUT_CLI} diagnostics planning reporting steps language module",
        "numpy lightning yaml",
        lazy="omegaconf jsonargparse transformers safetensors",
    ),
    "__init__": tier("_version module data interop"),
    "_version": tier(),
}
# Whoever meets a running Trainer.
ABOVE_RUNTIME = frozenset(TIERS) - set(
    "errors batches models losses optim generation metrics".split()
)
EVERYWHERE = frozenset({"torch", "typing_extensions"})


class Import(NamedTuple):
    """One import statement: where it stands and what it names."""

    file: Path
    line: int
    module: str
    at_module_level: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.module}"


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


def part_of(file: Path) -> str:
    """Return the first-level name a file belongs to: ``models``, ``cli``, ``module``, ..."""
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imports_of(file: Path) -> Iterator[Import]:
    """Yield the imports of a file that run; those under ``if TYPE_CHECKING`` do not."""
    yield from _imports_under(parsed(file), file, at_module_level=True)


def _imports_under(node: ast.AST, file: Path, at_module_level: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(file, child.lineno, alias.name, at_module_level)
        elif isinstance(child, ast.ImportFrom):
            yield Import(file, child.lineno, child.module or "", at_module_level)
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _imports_under(child, file, at_module_level and not inside)


def forbidden(statement: Import) -> bool:
    """Whether the table has no place for this import."""
    row, part = TIERS[part_of(statement.file)], part_of(statement.file)
    library, _, rest = statement.module.partition(".")
    if library == "lightning_llm":
        target = rest.partition(".")[0] or "__init__"
        allowed = row.parts | {part, "_version", "errors"}
        if part in ABOVE_RUNTIME:
            allowed |= {"runtime"}
        if part == "cli":
            allowed |= {"__init__"}  # the version, for --version
        lazy = row.lazy_parts
    else:
        target = library
        allowed = row.libraries | EVERYWHERE | sys.stdlib_module_names
        lazy = row.lazy_libraries
    return target not in (allowed if statement.at_module_level else allowed | lazy)


def test_every_part_of_the_package_has_a_row_in_the_table() -> None:
    assert {part_of(file) for file in SOURCES} <= set(TIERS)


@pytest.mark.parametrize("part", sorted(TIERS))
def test_imports_point_one_way(part: str) -> None:
    files = [file for file in SOURCES if part_of(file) == part]
    broken = [str(found) for file in files for found in imports_of(file) if forbidden(found)]
    assert not broken, "\n".join(broken)


def test_the_table_finds_a_forbidden_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    file = tmp_path / "models" / "bad.py"
    file.parent.mkdir()
    file.write_text(
        "import math, torch.nn\n"
        "from typing import TYPE_CHECKING\n"
        "from lightning_llm.models.config import TransformerConfig\n"
        "if TYPE_CHECKING:\n"
        "    import transformers\n"
        "from lightning_llm.data import store\n"
        "def f():\n"
        "    import lightning.pytorch\n"
    )
    assert [str(found) for found in imports_of(file) if forbidden(found)] == [
        "models/bad.py:6 imports lightning_llm.data",
        "models/bad.py:8 imports lightning.pytorch",
    ]


def test_imports_name_the_module_in_full() -> None:
    relative = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in SOURCES
        for node in ast.walk(parsed(file))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not relative, f"relative imports: {relative}"


def test_hugging_face_and_slow_libraries_are_imported_inside_functions() -> None:
    broken = [
        str(found)
        for file in SOURCES
        for found in imports_of(file)
        if found.at_module_level and found.module.partition(".")[0] in LAZY_ONLY
    ]
    assert not broken, "\n".join(broken)


def test_datasets_work_without_lightning() -> None:
    """Sources, store, packing and loaders serve any loop; only the datamodules are Lightning's."""
    broken = [
        str(found)
        for file in SOURCES
        for found in imports_of(file)
        if part_of(file) == "data"
        and not file.stem.endswith("datamodule")
        and found.module.partition(".")[0] == "lightning"
    ]
    assert not broken, "\n".join(broken)


def test_no_file_is_a_drawer_for_odds_and_ends() -> None:
    names = {"utils", "util", "helpers", "misc", "common"}
    assert not [str(file.relative_to(ROOT)) for file in SOURCES if file.stem in names]


PUBLIC = [
    part
    for part in TIERS
    if (PACKAGE / part).is_dir() and part not in ("cli", "interop", "runtime")
]


@pytest.mark.parametrize("name", ["", *PUBLIC, "interop.hf"])
def test_public_names_exist_and_are_documented(name: str) -> None:
    module = importlib.import_module(f"lightning_llm.{name}".rstrip("."))
    assert module.__all__, f"{module.__name__}.__all__ is the list of its public names"
    assert len(set(module.__all__)) == len(module.__all__)
    for public in module.__all__:
        found = getattr(module, public)
        if inspect.isclass(found) or inspect.isfunction(found):
            assert inspect.getdoc(found), f"{module.__name__}.{public} has no docstring"
            assert found.__doc__, f"{module.__name__}.{public} only inherits its docstring"


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(file.relative_to(ROOT))
        for file in SOURCES
        if parsed(file).body and ast.get_docstring(parsed(file)) is None and file.stem != "_version"
    ]
    assert not silent, f"no module docstring: {silent}"


def test_no_unfinished_code() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|raise NotImplementedError")
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in SOURCES
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if marks.search(line)
    ]
    assert not found, "\n".join(found)


def test_tracked_files_name_no_folder_of_one_machine() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    local = re.compile(r"(?<![\w.}])/(work|root|home|Users|tmp)/\w")
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        file = ROOT / name
        if not file.is_file():
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        found += [
            f"{name}:{number}: {line.strip()[:120]}"
            for number, line in enumerate(text.splitlines(), 1)
            if local.search(line)
        ]
    assert not found, "\n".join(found)
