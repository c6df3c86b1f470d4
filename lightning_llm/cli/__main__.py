"""``python -m lightning_llm.cli``: the ``lightning-llm`` command."""

from __future__ import annotations

import sys

from lightning_llm.cli import main

sys.exit(main())
