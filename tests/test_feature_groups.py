"""What a policy does without is 0 to it, in training and frozen, whatever the card's reader; all else it sees as before."""

import json

import numpy as np
import pytest
from fake_tuning import boundary, tiny_config
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from proxymix.controllers.frozen import CARD, WEIGHTS, FrozenController, save_controller
from proxymix.controllers.policy import build_policy, initial_parameters
from proxymix.feature_groups import GROUPS
from proxymix.observation import CONTEXT_FEATURES, SOURCE_FEATURES, context_features, equivariant_layout, source_features

SLOTS = 6
seeds = st.integers(0, 2**16)


def scene(seed=0, num_past=2):
    return boundary(np.random.default_rng(seed), num_past)


def policy(*without, architecture="equivariant", hidden_units=3, slots=SLOTS):
    rng = np.random.default_rng(1)
    values = initial_parameters(architecture, hidden_units, SLOTS, rng)
    shaken = {name: value + 0.3 * rng.normal(size=value.shape) for name, value in values.items()}
    return build_policy(architecture, shaken, slots, without)


def parts(without, at):
    """Context by name, and every source's own features by name."""
    observation = policy(*without).observe(at)
    context, sources, *_ = (observation[part] for part in equivariant_layout(SLOTS))
    own = sources.reshape(SLOTS, -1)[: len(at.sources)]
    return dict(zip(CONTEXT_FEATURES, context, strict=True)), dict(zip(SOURCE_FEATURES, own.T, strict=True))


def test_every_feature_is_in_one_group_and_only_the_bias_in_none():
    listed = [name for names in GROUPS.values() for name in names]
    assert sorted([*listed, "bias"]) == sorted({*CONTEXT_FEATURES, *SOURCE_FEATURES})


@given(seeds, st.sets(st.sampled_from(sorted(GROUPS))))
def test_a_group_left_out_is_zero_and_the_rest_as_it_was(seed, without):
    at, absent = scene(seed), {name for group in without for name in GROUPS[group]}
    for before, after in zip(parts((), at), parts(without, at), strict=True):
        for name, values in before.items():
            np.testing.assert_array_equal(after[name], np.zeros_like(values) if name in absent else values)


def test_without_normalisation_losses_are_in_nats():
    at = scene()
    context, own = parts(["normalisation"], at)
    assert context["log_current_loss"] == pytest.approx(at.current.losses[-1])
    assert own["log_loss"] == pytest.approx([source.losses[-1] for source in at.sources])
    risen = [max(0.0, s.losses[-1] - s.reference_loss) if s.reference_loss is not None else 0.0 for s in at.sources]
    assert own["log_regression"] == pytest.approx(risen, abs=1e-12)
    assert context["log_num_buffers"] == context_features(at)[CONTEXT_FEATURES.index("log_num_buffers")]
    assert own["slope"] == pytest.approx(source_features(at)[:, SOURCE_FEATURES.index("slope")])


@given(seeds, st.sets(st.sampled_from([*GROUPS, "normalisation"])), st.integers(0, 3))
def test_padding_changes_nothing(seed, without, num_past):
    at = scene(seed, num_past)
    padded, exact = policy(*without), policy(*without, slots=None)
    weights = [each.mixture(each.act(each.observe(at)), at) for each in (padded, exact)]
    np.testing.assert_allclose(weights[0], weights[1])


@pytest.mark.parametrize(("group", "zeros"), [("loss", slice(0, 6)), ("trend", slice(6, 12)), ("position", slice(18, 19))])
def test_the_papers_state_without_a_group(group, zeros):
    at, flat = scene(), {"architecture": "flat", "hidden_units": 8}
    before, after = policy(**flat).observe(at), policy(group, **flat).observe(at)
    assert before[zeros].any()
    before[zeros] = 0
    np.testing.assert_array_equal(after, before)


def test_the_papers_state_in_nats():
    at = scene()
    state = policy("normalisation", architecture="flat", hidden_units=8).observe(at)
    for slot, source in enumerate(at.sources):
        read = source.losses[: len(source.losses) - source.age]
        assert state[slot] == read[-1]
        assert state[SLOTS + slot] == pytest.approx((read[-1] - read[-2]) / source.interval)


@pytest.mark.parametrize("architecture", ["equivariant", "flat"])
def test_the_card_carries_it_and_the_hash_knows_it(tmp_path, architecture):
    ablated = policy("trend", "normalisation", architecture=architecture, hidden_units=4, slots=None)
    hashes = [
        save_controller(tmp_path / str(len(without)), ablated.parameters, name="x", architecture=architecture, facts={}, without=without)
        for without in ([], ["trend"], ["trend", "normalisation"])
    ]
    assert len(set(hashes)) == 3
    loaded, at = FrozenController.load(tmp_path / "2"), scene()
    assert loaded.card["without"] == ["normalisation", "trend"]
    np.testing.assert_allclose(list(loaded.decide(at).weights.values()), ablated.mixture(ablated.act(ablated.observe(at)), at), atol=1e-5)


def test_a_card_from_before_reads_everything(tmp_path):
    save_controller(tmp_path, policy().parameters, name="x", architecture="equivariant", facts={})
    card = json.loads((tmp_path / CARD).read_text())
    del card["without"]
    (tmp_path / CARD).write_text(json.dumps(card))
    assert FrozenController.load(tmp_path).policy.without == ()
    assert (tmp_path / WEIGHTS).exists()


def test_a_flat_controller_cannot_lack_what_it_never_had():
    with pytest.raises(ValidationError, match=r"without must be of trend, normalisation, loss, position for a flat controller, got age"):
        tiny_config("flat", without=["age"])
    with pytest.raises(ValidationError, match=r"controller\.without\.0"):
        tiny_config(without=["trends"])
