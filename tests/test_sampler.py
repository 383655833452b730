from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxymix.data.sampler import MixtureSampler

WEIGHTS = {"safety": 0.2, "code": 0.13, "math": 0.67}
POOLS = {"safety": 30, "code": 12, "math": 50}


def draw(sampler, weights=WEIGHTS, pools=POOLS, num_steps=6, batch_size=8):
    return sampler.draw_stage(weights, pools, num_steps, batch_size)


def drawn(plan, name):
    return [index for source, index in chain(*plan) if source == name]


@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0, 1), min_size=1).filter(lambda w: sum(w.values()) > 1e-3),
    st.integers(1, 12),
    st.integers(1, 16),
    st.integers(1, 40),
)
def test_realised_counts_follow_the_weights_within_one(raw, num_steps, batch_size, size):
    weights = {name: value / sum(raw.values()) for name, value in raw.items()}
    plan, counts = MixtureSampler(0).draw_stage(weights, dict.fromkeys(weights, size), num_steps, batch_size)
    assert [len(batch) for batch in plan] == [batch_size] * num_steps
    assert Counter(source for source, _ in chain(*plan)) == {name: count for name, count in counts.items() if count}
    for name, weight in weights.items():
        assert abs(counts[name] - weight * num_steps * batch_size) < 1 + 1e-6
        assert counts[name] == 0 or weight > 0
    assert all(0 <= index < size for _, index in chain(*plan))


def test_samples_of_a_source_are_spread_over_the_stage():
    plan, _ = draw(MixtureSampler(0), {"code": 0.25, "math": 0.75}, POOLS, num_steps=8, batch_size=8)
    assert [sum(source == "code" for source, _ in batch) for batch in plan] == [2] * 8


@given(st.integers(0, 2**40), st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_no_example_repeats_before_its_pool_is_exhausted(seed, stages):
    sampler, indices = MixtureSampler(seed), []
    for num_steps in stages:
        indices += drawn(draw(sampler, num_steps=num_steps)[0], "code")
    for start in range(0, len(indices), 12):
        window = indices[start : start + 12]
        assert len(set(window)) == len(window)


def test_no_repeats_when_a_finished_task_goes_on_from_its_buffer():
    sampler = MixtureSampler(0)
    draw(sampler, {"code": 1.0}, {"code": 50}, num_steps=1, batch_size=27)
    replayed = drawn(draw(sampler, {"code": 1.0}, {"code": 10}, num_steps=1, batch_size=10)[0], "code")
    assert sorted(replayed) == list(range(10))


def test_epochs_are_shuffled_anew():
    indices = drawn(draw(MixtureSampler(0), {"code": 1.0}, {"code": 12}, num_steps=2, batch_size=12)[0], "code")
    assert indices[:12] != indices[12:]
    assert sorted(indices[:12]) == sorted(indices[12:]) == list(range(12))


@given(st.integers(0, 4))
def test_a_resumed_stream_goes_on_as_if_never_interrupted(boundary):
    stages = [{"math": 1.0}, {"code": 0.5, "math": 0.5}, WEIGHTS, {"safety": 1.0, "math": 0.0}, WEIGHTS]
    whole, first = MixtureSampler(3), MixtureSampler(3)
    expected = [draw(whole, weights)[0] for weights in stages]
    for weights in stages[:boundary]:
        draw(first, weights)
    resumed = MixtureSampler(3)
    resumed.consumed = dict(first.consumed)
    assert [draw(resumed, weights)[0] for weights in stages[boundary:]] == expected[boundary:]


def test_the_presence_of_other_sources_does_not_change_a_sources_own_order():
    alone = drawn(draw(MixtureSampler(5), {"code": 1.0}, {"code": 12}, num_steps=1, batch_size=6)[0], "code")
    among = drawn(draw(MixtureSampler(5), {"safety": 0.5, "code": 0.25, "math": 0.25}, POOLS, num_steps=3, batch_size=8)[0], "code")
    assert among == alone


def test_seeds_and_sources_have_orders_of_their_own():
    pools = {"code": 40, "math": 40}
    orders = {tuple(drawn(draw(MixtureSampler(seed), {name: 1.0}, pools, 1, 40)[0], name)) for seed in (0, 1) for name in pools}
    assert len(orders) == 4


def test_the_weight_of_an_empty_pool_goes_to_the_others_in_proportion():
    _, counts = draw(MixtureSampler(0), {"safety": 0.5, "code": 0.1, "math": 0.4}, POOLS | {"safety": 0}, num_steps=10, batch_size=10)
    assert counts == {"safety": 0, "code": 20, "math": 80}


def test_nothing_to_draw_from_is_an_error():
    with pytest.raises(ValueError, match="at least one source with examples"):
        draw(MixtureSampler(0), {"safety": 1.0, "code": 0.0}, {"safety": 0, "code": 3})


def test_state_is_plain_numbers():
    sampler = MixtureSampler(0)
    draw(sampler)
    assert all(type(count) is int for count in sampler.consumed.values())
    assert sum(sampler.consumed.values()) == 48
    assert np.all([isinstance(index, int) for _, index in chain(*draw(sampler)[0])])
