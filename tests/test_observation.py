from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxymix.observation import (
    CONTEXT_FEATURES,
    SOURCE_FEATURES,
    Normalisation,
    context_features,
    equivariant_layout,
    equivariant_observation,
    flat_observation,
    last_change,
    normalised,
    source_features,
)
from proxymix.types import SourceReading, StageBoundary

SCENE = StageBoundary(
    task_index=1,
    stage_index=1,
    num_stages=4,
    sources=(
        SourceReading("safety", "anchor", (0.4, 0.4, 0.6), reference_loss=0.4),
        SourceReading("code", "past", (2.0, 1.0, 1.5), reference_loss=1.0),
        SourceReading("math", "current", (2.0, 1.0)),
    ),
)


def of(name):
    return dict(zip(SOURCE_FEATURES, source_features(SCENE)[SCENE.names.index(name)], strict=True))


def test_normalisation_by_hand():
    """Each score uses the statistics before its own reading: (μ, v) = (1, 0) → (1.1, .09) → …, ε = .01, α = .1."""
    scores = normalised([1.0, 2.0, 1.4, 1.1])
    first = (2.0 - 1.0) / np.sqrt(0.0 + 0.01)  # 10, clipped to 5
    mean, variance = 1.0 + 0.1 * 1.0, 0.9 * (0.0 + 0.1 * 1.0**2)
    second = (1.4 - mean) / np.sqrt(variance + 0.01)
    mean, variance = mean + 0.1 * 0.3, 0.9 * (variance + 0.1 * 0.3**2)
    third = (1.1 - mean) / np.sqrt(variance + 0.01)
    assert first > 5
    assert scores == pytest.approx([0.0, 5.0, second, third])
    assert last_change(scores) == pytest.approx(third - second)
    assert last_change(scores[:1]) == 0.0


def test_normalisation_constants_are_used():
    loose = Normalisation(rate=0.5, epsilon=1.0, clip=0.25)
    assert normalised([0.0, 0.1, 9.0], loose) == pytest.approx([0.0, 0.1, 0.25])


@given(st.lists(st.floats(0, 20), min_size=1, max_size=30), st.lists(st.floats(0, 20), min_size=1, max_size=5))
def test_a_score_never_depends_on_later_readings(losses, later):
    assert np.array_equal(normalised(losses), normalised(losses + later)[: len(losses)])


@given(st.lists(st.floats(0, 20), min_size=1, max_size=30))
def test_scores_start_at_zero_and_stay_clipped(losses):
    scores = normalised(losses)
    assert scores[0] == 0
    assert np.abs(scores).max() <= 5


def test_flat_observation_is_the_papers_state():
    state = flat_observation(SCENE, max_sources=5)
    histories = [source.losses for source in SCENE.sources]
    levels = [normalised(losses)[-1] for losses in histories]
    changes = [last_change(normalised(losses)) for losses in histories]
    expected = [*levels, 0, 0, *changes, 0, 0, *[0, 0, 1, 0, 0], 1 / 4]
    assert state.shape == (3 * 5 + 1,)
    assert state == pytest.approx(np.array(expected))


def test_flat_observation_refuses_more_sources_than_it_has_slots():
    with pytest.raises(ValueError, match="at most 2 for a flat controller, got 3"):
        flat_observation(SCENE, max_sources=2)
    with pytest.raises(ValueError, match="max_sources must be at least"):
        equivariant_observation(SCENE, max_sources=2)


def test_context_features_by_hand():
    context = dict(zip(CONTEXT_FEATURES, context_features(SCENE), strict=True))
    assert context["bias"] == 1
    assert context["log_total_regression"] == pytest.approx((np.log(0.2 + 0.5 + 0.05) + 1.5) / 1.5)
    assert context["log_current_loss"] == pytest.approx((np.log(1.0 + 0.05) + 1.5) / 1.5)
    assert context["log_num_buffers"] == pytest.approx(np.log(2))
    assert context["current_slope"] == pytest.approx(1.0 / 2.05)
    assert context["position"] == 0.25


def test_source_features_by_hand():
    assert of("safety") == pytest.approx(
        {
            "log_regression": (np.log(0.25) + 1.5) / 1.5,
            "log_loss": (np.log(0.65) + 1.5) / 1.5,
            "slope": -0.2 / 0.45,
            "is_anchor": 1,
            "is_freshest": 0,
            "age": 0,
        }
    )
    assert of("code")["is_freshest"] == 1
    assert of("math")["is_freshest"] == of("math")["is_anchor"] == 0
    assert of("math")["log_regression"] == pytest.approx((np.log(0.05) + 1.5) / 1.5)  # no reference yet: nothing lost


def test_freshest_is_the_past_task_with_the_shortest_history_wherever_it_stands():
    old, new = SourceReading("old", "past", (1.0,) * 9, 1.0), SourceReading("new", "past", (1.0,) * 5, 1.0)
    for order in ((old, new), (new, old)):
        features = source_features(replace(SCENE, sources=(*order, SCENE.current)))
        assert dict(zip([source.name for source in order], features[:, SOURCE_FEATURES.index("is_freshest")], strict=False)) == {"old": 0, "new": 1}


def test_a_loss_better_than_its_reference_is_no_regression():
    better = SourceReading("code", "past", (1.0, 0.2), reference_loss=1.0)
    worse = replace(better, losses=(1.0, 1.0))
    first, second = (source_features(replace(SCENE, sources=(source, SCENE.current)))[0, 0] for source in (better, worse))
    assert first == second


def test_a_carried_over_reading_keeps_its_slope_per_stage_and_tells_its_age():
    """Read at 1.5, four stages later at .9, then carried over twice: −.15 a stage, seen from 1.5."""
    carried = SourceReading("code", "past", (1.5, 1.5, 1.5, 1.5, 0.9, 0.9, 0.9), reference_loss=0.5, age=2, interval=4)
    fresh = replace(carried, losses=(1.5, 0.9), age=0, interval=1)
    of_carried, of_fresh = (
        dict(zip(SOURCE_FEATURES, source_features(replace(SCENE, sources=(s, SCENE.current)))[0], strict=True)) for s in (carried, fresh)
    )
    assert of_carried["slope"] == pytest.approx(0.15 / 1.55)
    assert of_carried["age"] == pytest.approx(np.log(3) / 2)
    assert of_fresh["slope"] == pytest.approx(0.6 / 1.55)
    assert of_fresh["age"] == 0
    assert of_carried["log_loss"] == of_fresh["log_loss"]
    once = SourceReading("code", "past", (1.5, 1.5, 1.5), reference_loss=0.5, age=2)
    assert source_features(replace(SCENE, sources=(once, SCENE.current)))[0, SOURCE_FEATURES.index("slope")] == 0


def test_the_papers_state_of_a_source_that_was_not_read_is_that_of_its_last_reading():
    read = replace(SCENE.sources[0], losses=(0.4, 0.4, 0.6))
    carried = replace(read, losses=(0.4, 0.4, 0.6, 0.6), age=1)
    states = [flat_observation(replace(SCENE, sources=(s, *SCENE.sources[1:])), 5) for s in (read, carried)]
    assert states[0] == pytest.approx(states[1])
    rarely = flat_observation(replace(SCENE, sources=(replace(read, interval=2), *SCENE.sources[1:])), 5)
    assert rarely[5] == pytest.approx(states[0][5] / 2)


def test_equivariant_observation_lies_as_its_layout_says():
    observation = equivariant_observation(SCENE, max_sources=5)
    context, sources, visible, current = (observation[part] for part in equivariant_layout(5))
    assert np.array_equal(context, context_features(SCENE))
    assert np.array_equal(sources.reshape(5, -1)[:3], source_features(SCENE))
    assert not sources.reshape(5, -1)[3:].any()
    assert visible.tolist() == [1, 1, 1, 0, 0]
    assert current.tolist() == [0, 0, 1, 0, 0]
    assert len(observation) == equivariant_layout(5)[-1].stop
