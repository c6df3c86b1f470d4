"""Best-fit decreasing: pack pieces into rows of a fixed length with little left over.

Packing whole documents by best fit keeps them uncut where they fit and wastes well under one per
cent of the positions on usual corpora (Ding et al., "Fewer Truncations Improve Language
Modeling", ICML 2024).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def best_fit(
    lengths: npt.NDArray[np.integer], capacity: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Assign pieces to rows: longest first, each to the fullest row that still has room.

    Pieces of one length are placed together: a row with room ``r`` that takes one piece of
    length ``l`` stays the fullest, so it takes ``r // l`` of them. Each row moves to less than half
    its room at each such step, which bounds the work by O(n log n); sorting costs as much.

    Args:
        lengths: Of the pieces (n,), each in ``1..capacity``.
        capacity: Length of a row.

    Returns:
        The pieces (n,) row by row in the order in which they were placed, and where each row's
        pieces start in it (rows + 1). Equal input gives equal output.
    """
    by_length = np.argsort(-lengths.astype(np.int64), kind="stable")
    counts = np.bincount(lengths, minlength=capacity + 1)
    row_of = np.empty(len(lengths), dtype=np.int64)  # in the order of by_length
    room: list[npt.NDArray[np.int64]] = [np.empty(0, dtype=np.int64)] * (capacity + 1)
    occupied = np.zeros(capacity + 1, dtype=bool)
    rows = placed = 0

    def put_back(left: int, freed: npt.NDArray[np.int64]) -> None:
        if len(freed) and left:
            room[left] = np.concatenate([room[left], freed])
            occupied[left] = True

    for length in np.flatnonzero(counts)[::-1].tolist():
        pending = int(counts[length])
        for left in (length + np.flatnonzero(occupied[length:])).tolist():
            taken, each = room[left], left // length
            full = min(len(taken), pending // each)
            row_of[placed : placed + full * each] = np.repeat(taken[:full], each)
            placed, pending = placed + full * each, pending - full * each
            put_back(left - each * length, taken[:full])
            if pending and full < len(taken):  # fewer pieces than this row could take
                row_of[placed : placed + pending] = taken[full]
                put_back(left - pending * length, taken[full : full + 1])
                placed, pending, full = placed + pending, 0, full + 1
            room[left] = taken[full:]
            occupied[left] = len(room[left]) > 0
            if not pending:
                break
        each = capacity // length
        fresh = rows + np.arange(-(-pending // each))
        row_of[placed : placed + pending] = np.repeat(fresh, each)[:pending]
        spare = pending - (len(fresh) - 1) * each  # pieces in the last of the new rows
        put_back(capacity - each * length, fresh[: len(fresh) - 1])
        put_back(capacity - spare * length, fresh[len(fresh) - 1 :])
        placed, rows = placed + pending, rows + len(fresh)

    by_row = np.argsort(row_of, kind="stable")
    offsets = np.zeros(rows + 1, dtype=np.int64)
    np.cumsum(np.bincount(row_of, minlength=rows), out=offsets[1:])
    return by_length[by_row], offsets
