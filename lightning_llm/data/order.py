"""The order of samples: a permutation computed index by index, in constant memory.

A Feistel network over ``a x b`` cells, ``a*b`` just above ``n``, with cycle walking for the cells
at the end that stand for no sample (Black and Rogaway, "Ciphers with Arbitrary Finite Domains",
CT-RSA 2002). The round function mixes 64 bits as SplitMix64 does (Steele, Lea and Flood, "Fast
Splittable Pseudorandom Number Generators", OOPSLA 2014). No library's generator is involved, so
an order never changes with a version of numpy or torch.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import numpy.typing as npt

_ROUNDS = 8
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


class Permutation:
    """A pseudo-random bijection of ``range(n)``, given by ``(n, seed, epoch)`` alone.

    Args:
        n: Number of samples.
        seed: Any integer.
        epoch: Any integer; each epoch has an order of its own.

    Example:
        >>> order = Permutation(5, seed=1, epoch=0)
        >>> sorted(order(np.arange(5)).tolist())
        [0, 1, 2, 3, 4]
    """

    def __init__(self, n: int, *, seed: int, epoch: int = 0) -> None:
        if not 0 <= n < 2**62:
            raise ValueError(f"n={n} must be between 0 and 2**62.")
        self.n = n
        columns = max(1, math.isqrt(n))
        self._columns = np.uint64(columns)
        self._rows = np.uint64(max(1, -(-n // columns)))
        key = hashlib.blake2b(f"{seed}:{epoch}".encode(), digest_size=8 * _ROUNDS).digest()
        self._keys = np.frombuffer(key, dtype="<u8").astype(np.uint64)

    def __call__(self, index: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return the samples at the given places of the order.

        Raises:
            IndexError: A place is not in ``range(n)``.
        """
        places = np.asarray(index, dtype=np.int64)
        if places.size and not 0 <= places.min() <= places.max() < self.n:
            raise IndexError(f"place {places.min()}..{places.max()} of {self.n} samples")
        samples = self._encrypt(places.ravel().astype(np.uint64))
        outside = np.flatnonzero(samples >= self.n)
        while len(outside):
            samples[outside] = self._encrypt(samples[outside])
            outside = outside[samples[outside] >= self.n]
        return samples.astype(np.int64).reshape(places.shape)

    def _encrypt(self, cells: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        row, column = cells // self._columns, cells % self._columns
        for turn in range(0, _ROUNDS, 2):
            row = (row + _mix(column, self._keys[turn]) % self._rows) % self._rows
            column = (column + _mix(row, self._keys[turn + 1]) % self._columns) % self._columns
        return row * self._columns + column


def _mix(value: npt.NDArray[np.uint64], key: np.uint64) -> npt.NDArray[np.uint64]:
    """Spread the bits of ``value + key`` over all 64 (the finaliser of SplitMix64)."""
    value = value + key
    value = (value ^ (value >> np.uint64(30))) * _MIX_1
    value = (value ^ (value >> np.uint64(27))) * _MIX_2
    return value ^ (value >> np.uint64(31))
