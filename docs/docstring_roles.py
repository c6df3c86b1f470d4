"""Griffe extension: the reStructuredText roles of docstrings, as the Markdown of the site."""

from __future__ import annotations

import re
from typing import Any

import griffe

_REFERENCE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`(~?)([\w.]+)`")
_INLINE_MATH = re.compile(r":math:`([^`]+)`")
_EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
_DISPLAY_MATH = re.compile(r"^( *)\.\. math::\n((?:\1 +.*\n?|\s*\n)+)", re.MULTILINE)


def _reference(found: re.Match[str]) -> str:
    """Link to a full path where the site has it; show the name as code."""
    shown = found[2].rpartition(".")[2] if found[1] else found[2]
    return f'<autoref optional identifier="{found[2]}"><code>{shown}</code></autoref>'


def _display(found: re.Match[str]) -> str:
    lines = "\n".join(line.strip() for line in found[2].splitlines() if line.strip())
    # RST aligns the lines of a formula by itself, TeX wants to be told.
    aligned = f"\\begin{{aligned}}\n{lines}\n\\end{{aligned}}" if "&" in lines else lines
    return f"\n{found[1]}\\[\n{aligned}\n{found[1]}\\]\n\n"


class DocstringRoles(griffe.Extension):
    """Rewrites docstrings as they are loaded; the source stays as it is."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is None:
            return
        text = _EXAMPLE.sub("Examples:", obj.docstring.value)  # what Griffe calls the section
        text = _REFERENCE.sub(_reference, text)
        text = _DISPLAY_MATH.sub(_display, text)
        obj.docstring.value = _INLINE_MATH.sub(r"\\(\1\\)", text)
