"""The order of samples: a bijection, the same everywhere, and without visible structure."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_llm.data.order import Permutation


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 99, 100, 101, 1023, 1024, 65_537])
def test_every_sample_comes_once(n):
    for seed in range(3):
        order = Permutation(n, seed=seed, epoch=seed)(np.arange(n))
        assert np.array_equal(np.sort(order), np.arange(n))


def test_every_size_up_to_300_is_a_bijection():
    for n in range(300):
        assert len(set(Permutation(n, seed=5)(np.arange(n)).tolist())) == n


def test_any_part_is_computed_alone():
    order = Permutation(1_000_003, seed=1, epoch=2)
    whole = order(np.arange(5_000))
    assert order(4_321) == whole[4_321]
    assert np.array_equal(order(np.arange(100, 200).reshape(10, 10)).ravel(), whole[100:200])


def test_far_places_of_a_huge_corpus():
    n = 2**61
    places = np.array([0, 1, n - 1])
    samples = Permutation(n, seed=1)(places)
    assert len(set(samples.tolist())) == 3
    assert ((samples >= 0) & (samples < n)).all()


def test_seeds_and_epochs_give_orders_of_their_own():
    keys = [(0, 0), (0, 1), (1, 0), (-1, 0), (2**80, 0), (0, 10)]
    orders = [Permutation(1_000, seed=s, epoch=e)(np.arange(1_000)) for s, e in keys]
    for i, first in enumerate(orders):
        for second in orders[i + 1 :]:
            # two random permutations agree in one place on average
            assert (first == second).sum() < 10


def test_the_order_never_changes_between_versions():
    """Resuming a run needs the order it was started with: these values are a promise."""
    assert Permutation(10, seed=0)(np.arange(10)).tolist() == [1, 0, 3, 2, 5, 4, 7, 8, 9, 6]
    assert Permutation(10**12, seed=7, epoch=3)(np.arange(3)).tolist() == [
        27302994853,
        861004851089,
        816499477958,
    ]


def test_it_looks_random():
    n, trials = 50, 4_000
    orders = np.stack([Permutation(n, seed=seed)(np.arange(n)) for seed in range(trials)])
    # Each sample is equally likely in each place: chi-squared over the n x n table.
    table = np.stack([np.bincount(orders[:, place], minlength=n) for place in range(n)])
    expected = trials / n
    chi_squared = ((table - expected) ** 2 / expected).sum()
    freedom = (n - 1) ** 2
    assert abs(chi_squared - freedom) < 5 * np.sqrt(2 * freedom)
    # Neighbours are independent: one follows another as often as any other pair does.
    following = (orders[:, 1:] == orders[:, :-1] + 1).mean()
    assert abs(following - 1 / n) < 5 * np.sqrt(1 / n / (trials * (n - 1)))


def test_long_orders_have_no_trend():
    n = 200_000
    order = Permutation(n, seed=3)(np.arange(n)).astype(np.float64)
    for lag in (1, 2, 447, 448):  # 447 is the width of the cell grid
        correlation = np.corrcoef(order[:-lag], order[lag:])[0, 1]
        assert abs(correlation) < 5 / np.sqrt(n)
    assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 5 / np.sqrt(n)


def test_places_outside_are_refused():
    with pytest.raises(IndexError, match=r"place 0\.\.5 of 5 samples"):
        Permutation(5, seed=0)(np.arange(6))
    with pytest.raises(IndexError, match="place -1"):
        Permutation(5, seed=0)(-1)
    with pytest.raises(ValueError, match="n=-1"):
        Permutation(-1, seed=0)
