"""The private names of Lightning that this package needs, each behind a function.

A canary test in ``tests/runtime/test_lightning_api.py`` fails where a release of Lightning renames
one of them.
"""

from __future__ import annotations
