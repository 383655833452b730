from dataclasses import replace

import pytest

from proxymix.observation import last_change, normalised
from proxymix.reward import final_score, paired_reward, paper_reward, safety_score
from proxymix.types import SourceReading, StageBoundary


def after(**histories):
    sources = [SourceReading(name, "current" if name == "math" else "past", tuple(losses), 1.0) for name, losses in histories.items()]
    return StageBoundary(1, 1, 4, tuple(sources))


def change(losses):
    return last_change(normalised(losses))


def test_paper_reward_by_hand():
    """Second readings are easy: z = Δℓ / √.01. Math fell by .2 (−2), code rose by .1 (+1), safety fell (no rise)."""
    boundary = after(safety=[0.4, 0.3], code=[1.0, 1.1], math=[2.0, 1.8])
    reward = paper_reward(boundary, "math", lambda_=0.5, beta=0.25, safety=0.8)
    assert reward == pytest.approx(2.0 - 0.5 * (1.0 + 0.0) / 2 + 0.25 * 0.8)


def test_paper_reward_counts_no_change_of_a_source_that_was_not_read():
    """Its score drifts back to 0 as the statistics get used to the level; that is no rise."""
    boundary = after(code=[1.0, 0.9, 0.9], math=[2.0, 1.9, 1.8])
    carried = replace(boundary, sources=(replace(boundary.sources[0], age=1), boundary.sources[1]))
    fall = -change([2.0, 1.9, 1.8])
    assert paper_reward(carried, "math", lambda_=1.0, beta=0.5, safety=None) == pytest.approx(fall)
    assert paper_reward(boundary, "math", lambda_=1.0, beta=0.5, safety=None) < fall


def test_paper_reward_without_anything_to_forget_is_the_fall_of_the_loss():
    assert paper_reward(after(math=[2.0, 1.8]), "math", lambda_=9.0, beta=0.5, safety=None) == pytest.approx(2.0)


def test_paper_reward_leaves_the_safety_term_out_where_there_is_no_safety_source():
    boundary = after(code=[1.0, 1.1], math=[2.0, 1.8])
    without, zero = (paper_reward(boundary, "math", lambda_=1.0, beta=0.5, safety=safety) for safety in (None, 0.0))
    assert without == zero


def test_a_task_that_has_just_appeared_was_not_there_to_be_harmed():
    histories = {"code": [1.0, 1.1], "math": [2.0, 1.8]}
    assert paper_reward(after(**histories, next=[3.0]), "code", lambda_=1.0, beta=0.0, safety=None) == pytest.approx(
        paper_reward(after(**histories), "code", lambda_=1.0, beta=0.0, safety=None)
    )


def test_paper_reward_uses_the_last_stage_alone():
    losses = [2.0, 1.0, 1.5]
    assert paper_reward(after(math=losses), "math", lambda_=1.0, beta=0.0, safety=None) == pytest.approx(-change(losses))


def test_safety_score_by_hand():
    assert safety_score(0.9, 0.7) == pytest.approx(0.9 - 0.3)
    assert safety_score(0.9, 0.7, gamma=2.0) == pytest.approx(0.9 - 0.6)
    assert safety_score(1.0, 0.0) == 0.0  # refusing everything is worth nothing
    assert safety_score(0.0, 0.0, gamma=0.5) == -0.5


def test_paired_reward_is_the_distance_from_the_mean_reference():
    assert paired_reward(0.70, [0.60, 0.64], scale=0.02) == pytest.approx(4.0)
    assert paired_reward(0.60, [0.62], scale=0.02) == pytest.approx(-1.0)


def test_final_score_weighs_every_source_alike():
    assert final_score({"safety": 1.0, "code": 0.5, "math": 0.0}) == pytest.approx(0.5)
