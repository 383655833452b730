from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

from proxymix.mirroring import Pilot, check_mirroring, partial_spearman, ranks, spearman

GAPS = np.array([1.0, 2, 3, 4, 1, 2, 3, 1, 2, 1])
"""Of the ten pairs of five tasks."""
tied = st.lists(st.integers(0, 5), min_size=3, max_size=20)  # few values, so many ties


def pilots(rng, num_sequences=3, num_seeds=2, noise=0.0, related=True):
    """Per sequence a true φ that proxy and target share (or not), plus noise per seed and model."""
    made = []
    for sequence in range(num_sequences):
        truth, other = rng.normal(size=(2, len(GAPS)))
        for seed in range(num_seeds):
            target = (truth if related else other) + noise * rng.normal(size=len(GAPS))
            made.append(Pilot(f"s{sequence}", seed, truth + noise * rng.normal(size=len(GAPS)), target, GAPS))
    return made


@given(tied)
def test_ranks_are_scipys(values):
    assert np.array_equal(ranks(values), rankdata(values) - 1)


@given(st.data(), tied)
def test_spearman_is_scipys_ties_included(data, first):
    second = data.draw(st.lists(st.integers(0, 5), min_size=len(first), max_size=len(first)))
    assume(len(set(first)) > 1 and len(set(second)) > 1)
    assert spearman(first, second) == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)


def test_nothing_to_rank_is_nothing_mirrored():
    assert spearman([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) == 0.0


def test_perfect_mirroring():
    result = check_mirroring(pilots(np.random.default_rng(0)), np.random.default_rng(1), num_resamples=400)
    assert result.rho == pytest.approx(1.0)
    assert result.interval == pytest.approx((1.0, 1.0))
    assert result.p_value == pytest.approx(1 / 401)
    assert result.ceiling == pytest.approx(1.0)
    assert result.per_sequence == pytest.approx({"s0": 1.0, "s1": 1.0, "s2": 1.0})


def test_unrelated_models_do_not_mirror():
    p_values = [
        check_mirroring(pilots(np.random.default_rng(seed), noise=0.1, related=False), np.random.default_rng(9), num_resamples=200).p_value
        for seed in range(20)
    ]
    assert np.median(p_values) > 0.2
    assert sum(p < 0.05 for p in p_values) <= 3  # one in twenty is expected


def test_more_seeds_of_one_sequence_are_no_more_evidence():
    """Under chance alone, repeating the same pilot as further seeds must not make the p-value smaller."""
    one = pilots(np.random.default_rng(4), num_sequences=1, num_seeds=1, noise=1.0)[0]
    repeated = [replace(one, seed=seed) for seed in range(6)]
    single, many = (check_mirroring(group, np.random.default_rng(0), num_resamples=1000).p_value for group in ([one], repeated))
    assert many == pytest.approx(single, abs=0.06)


def test_p_value_counts_every_order_that_does_as_well():
    """Of 3! orders, one is perfect: p is near 1/6, however often it is resampled."""
    pilot = Pilot("s", 0, np.array([0.1, 0.2, 0.7]), np.array([1.0, 2.0, 3.0]), np.ones(3))
    assert check_mirroring([pilot], np.random.default_rng(0), num_resamples=3000).p_value == pytest.approx(1 / 6, abs=0.02)


@given(st.integers(0, 1000))
def test_interval_contains_rho(seed):
    result = check_mirroring(pilots(np.random.default_rng(seed), noise=0.7), np.random.default_rng(seed), num_resamples=100)
    assert result.interval[0] <= result.rho <= result.interval[1]


def test_more_noise_widens_the_interval():
    quiet, loud = (check_mirroring(pilots(np.random.default_rng(2), noise=n), np.random.default_rng(0), 300).interval for n in (0.05, 1.0))
    assert loud[1] - loud[0] > 2 * (quiet[1] - quiet[0])


def test_ceiling_needs_two_seeds_of_one_sequence():
    rng = np.random.default_rng(0)
    assert check_mirroring(pilots(rng, num_sequences=4, num_seeds=1), rng, 10).ceiling is None
    noisy = pilots(rng, num_sequences=1, num_seeds=2, noise=0.5)
    assert check_mirroring(noisy, rng, 10).ceiling == pytest.approx(spearman(noisy[0].target, noisy[1].target))


def test_partial_rho_is_zero_where_both_only_follow_the_gap():
    both = Pilot("s", 0, 1 - np.exp(-GAPS), GAPS**2, GAPS)
    result = check_mirroring([both], np.random.default_rng(0), 50)
    assert result.rho == pytest.approx(1.0)
    assert result.partial_rho == pytest.approx(0.0, abs=1e-9)


def test_partial_rho_keeps_what_the_gap_does_not_explain():
    own = np.random.default_rng(3).normal(size=len(GAPS))
    assert partial_spearman(GAPS + 5 * own, GAPS + 5 * own, GAPS) == pytest.approx(1.0)


def test_rho_is_the_mean_over_sequences_and_seeds():
    made = pilots(np.random.default_rng(5), noise=0.8)
    expected = [spearmanr(pilot.proxy, pilot.target).statistic for pilot in made]
    result = check_mirroring(made, np.random.default_rng(0), 10)
    assert result.rho == pytest.approx(np.mean(expected))
    assert result.per_sequence["s1"] == pytest.approx(np.mean(expected[2:4]))


def test_no_pilots_is_an_error():
    with pytest.raises(ValueError, match="must not be empty"):
        check_mirroring([], np.random.default_rng(0))
