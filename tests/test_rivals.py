"""Rules that need a boundary and a number, against worked examples; and what every rule must keep."""

from dataclasses import replace

import numpy as np
import pytest
from fake_tuning import boundary
from hypothesis import given
from hypothesis import strategies as st

from proxymix.controllers.baselines import UniformReplay, baseline
from proxymix.controllers.controls import ShuffledObservations, untrained
from proxymix.controllers.loss_rules import loss_slope, proportional, saturation
from proxymix.controllers.rule import Rule, split_decision
from proxymix.controllers.schedules import mean_schedule, schedule, static_mixture
from proxymix.errors import UserError
from proxymix.types import SourceReading, StageBoundary

METHODS = ["no_replay", "random_30", "ramp_4", "proportional_40", "loss_slope_30", "saturation", "saturation_0.5"]

SCENE = StageBoundary(
    1,
    1,
    4,
    (
        SourceReading("safety", "anchor", (0.4, 0.6), 0.4),
        SourceReading("code", "past", (1.9, 1.3, 1.5), 1.3),
        SourceReading("math", "current", (2.2, 0.2)),
    ),
)
ALONE = replace(SCENE, sources=SCENE.sources[2:])


def weights(controller, scene=SCENE):
    return dict(controller.decide(scene).weights)


def test_proportional_by_hand():
    assert weights(proportional(0.4)) == pytest.approx({"safety": 0.4 * 0.6 / 2.1, "code": 0.4 * 1.5 / 2.1, "math": 0.6})


def test_loss_slope_by_hand():
    # safety: 0 → .2/√.01 = 2.   code: −.6 is −6, clipped to −5; then mean 1.84, variance .0324: (1.5 − 1.84)/√.0424 = −1.6512.
    rise = {"safety": 2.0, "code": 5 - 0.34 / np.sqrt(0.0424)}
    total = sum(rise.values())
    assert weights(loss_slope(0.3)) == pytest.approx({"safety": 0.6 / total, "code": 0.3 * rise["code"] / total, "math": 0.7})


def test_a_carried_over_loss_is_no_rest_and_a_long_rise_counts_per_stage():
    code = SourceReading("code", "past", (1.9, 1.3, 1.5, 1.5), 1.3, age=1, interval=2)
    rise = {"safety": 2.0, "code": (5 - 0.34 / np.sqrt(0.0424)) / 2}
    total = sum(rise.values())
    assert weights(loss_slope(0.3), replace(SCENE, sources=(SCENE.sources[0], code, SCENE.sources[2])))["code"] == pytest.approx(
        0.3 * rise["code"] / total
    )


def test_where_no_loss_rises_the_slope_rule_is_uniform():
    sources = [replace(source, losses=source.losses[::-1] if source.name == "safety" else (1.5, 1.5, 1.5)) for source in SCENE.sources]
    assert weights(loss_slope(0.3), replace(SCENE, sources=tuple(sources))) == pytest.approx({"safety": 0.15, "code": 0.15, "math": 0.7})


@pytest.mark.parametrize(("loss", "share"), [(0.0, 0.8), (0.2, 0.475), (0.4, 0.28), (1e6, 0.15)])
def test_saturation_by_hand(loss, share):
    scene = replace(SCENE, sources=(*SCENE.sources[:2], SourceReading("math", "current", (2.2, loss))))
    assert weights(saturation(), scene) == pytest.approx({"safety": share * 0.6 / 2.1, "code": share * 1.5 / 2.1, "math": 1 - share})


def test_a_schedule_may_prefer_anchors():
    assert weights(schedule([[0.4]], anchor_scores=[3.0])) == pytest.approx({"safety": 0.3, "code": 0.1, "math": 0.6})


def test_a_schedule_beyond_what_it_was_made_for():
    controller = schedule([[0.1, 0.3], [0.5, 0.7]])

    def share(task, stage, num_stages):
        return 1 - weights(controller, replace(SCENE, task_index=task, stage_index=stage, num_stages=num_stages))["math"]

    assert [share(task, stage, 2) for task in (0, 1, 5) for stage in (0, 1)] == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.5, 0.7])
    assert [share(1, stage, 4) for stage in range(4)] == pytest.approx([0.5, 0.5, 0.7, 0.7])
    assert share(1, 0, 1) == pytest.approx(0.5)
    assert weights(controller)["safety"] == weights(controller)["code"]


def test_a_mean_schedule_is_that_of_all_runs_that_got_so_far():
    short, long = [[0.2, 0.4]], [[0.4, 0.8], [0.5, 0.9]]
    assert np.array(mean_schedule([short, long])) == pytest.approx(np.array([[0.3, 0.6], [0.5, 0.9]]))


def test_a_static_mixture_by_hand():
    controller = static_mixture({"safety": 0.1, "code": 0.2, "math": 0.3, "chat": 0.4})
    assert weights(controller) == pytest.approx({"safety": 1 / 6, "code": 2 / 6, "math": 3 / 6})
    assert weights(controller, ALONE) == {"math": 1.0}
    assert weights(static_mixture({"safety": 0, "code": 0, "math": 0, "chat": 1})) == pytest.approx(dict.fromkeys(SCENE.names, 1 / 3))
    with pytest.raises(UserError, match=r"weight for \['code'\].*learn it on this sequence"):
        static_mixture({"safety": 1.0, "math": 1.0}).decide(SCENE)


def test_shuffled_observations_swap_within_a_role_alone():
    seen = []

    class Spy:
        name = "spy"

        def decide(self, scene):
            seen.append(scene)
            return proportional(0.5).decide(scene)

    scene = boundary(np.random.default_rng(0), num_past=4, anchors=3)
    for stage in range(4):
        controller = ShuffledObservations(Spy(), seed=1)
        asked = replace(scene, stage_index=stage)
        assert weights(controller, asked) == weights(controller, asked)
        assert controller.decide(asked).controller == "shuffled"
        assert seen[-1].names == scene.names
        for role in ("anchor", "past", "current"):
            before, after = ({replace(s, name="") for s in b.sources if s.role == role} for b in (scene, seen[-1]))
            assert before == after
        assert seen[-1].current == scene.current
    assert len({shown.sources for shown in seen}) > 2
    assert ShuffledObservations(Spy(), seed=2).decide(scene).weights != ShuffledObservations(Spy(), seed=1).decide(scene).weights


def test_an_untrained_controller_is_named_and_repeatable():
    first, again, other = (untrained("flat", 8, 6, seed) for seed in (0, 0, 1))
    assert weights(first) == weights(again) != weights(other)
    assert first.decide(SCENE).controller == "untrained"


@pytest.mark.parametrize("method", METHODS)
@given(st.integers(0, 6), st.integers(0, 3), st.integers(0, 2**16), st.randoms())
def test_every_rule_gives_a_mixture_whatever_the_order_of_sources(method, num_past, anchors, seed, random):
    scene = boundary(np.random.default_rng(seed), num_past, anchors=anchors)
    controller = baseline(method)
    decision = controller.decide(scene)
    assert (controller.name, decision.controller) == (method, method)
    assert tuple(decision.weights) == scene.names
    assert min(decision.weights.values()) >= 0
    assert sum(decision.weights.values()) == pytest.approx(1)
    if not num_past + anchors:
        assert decision.weights == {scene.current.name: 1.0}
    shuffled = list(scene.sources)
    random.shuffle(shuffled)
    assert weights(baseline(method), replace(scene, sources=tuple(shuffled))) == pytest.approx(dict(decision.weights))


@given(st.lists(st.floats(0, 1e308), min_size=1, max_size=6), st.floats(0, 1))
def test_any_scores_make_a_mixture(scores, share):
    sources = [SourceReading(f"s{i}", "past", (1.0,), 1.0) for i in range(len(scores))]
    scene = StageBoundary(1, 0, 1, (*sources, SourceReading("now", "current", (1.0,))))
    found = split_decision("x", scene, share, {f"s{i}": score for i, score in enumerate(scores)}).weights
    assert 1 - found["now"] == pytest.approx(share)
    assert sum(found.values()) == pytest.approx(1)
    assert max(scores) == 0 or all(found[f"s{i}"] == 0 for i, score in enumerate(scores) if score == 0)


def test_without_preferences_a_rule_is_random_replay_to_the_bit():
    for count in range(1, 9):
        scene = boundary(np.random.default_rng(0), count)
        assert weights(Rule("x", 0.3, lambda scene: {}), scene) == weights(UniformReplay(0.3), scene)
        assert weights(UniformReplay(0.3), scene)["task0"] == 0.3 / (count + 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: proportional(1.5),
        lambda: saturation(0.0),
        lambda: schedule([]),
        lambda: schedule([[0.1], []]),
        lambda: schedule([[1.1]]),
        lambda: static_mixture({"code": -0.1}),
        lambda: weights(Rule("x", 0.5, lambda scene: {"code": -1.0})),
        lambda: weights(Rule("x", 0.5, lambda scene: {"code": float("nan")})),
        lambda: weights(Rule("x", lambda scene: 1.2, lambda scene: {})),
    ],
)
def test_impossible_rules_are_refused(make):
    with pytest.raises(ValueError, match=r"must (be|have)"):
        make()
