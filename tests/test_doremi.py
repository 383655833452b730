"""DoReMi: its updates by hand, and a mixture learnt on a tiny proxy."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxymix.controllers.schedules import static_mixture
from proxymix.doremi import GroupDro, all_at_once, learn_mixture
from proxymix.types import SourceReading, StageBoundary


def test_updates_by_hand():
    # ½·3 : ½·1 = ¾ : ¼, then a tenth of it uniform: .725 : .275. Nothing in excess: .9·.725 + .05 = .7025. Then .7025 : 2·.2975.
    dro = GroupDro({}, smoothing=0.1)
    differences = np.array([np.log(3), -1.0, 0.0], dtype=float), np.array([-9.0, 0.0, np.log(2)])
    assert dro.weights(np.stack(differences)[:, :1]) == pytest.approx([0.725, 0.275])
    assert dro.weights(np.stack(differences)[:, :2]) == pytest.approx([0.7025, 0.2975])
    assert dro.weights(np.stack(differences))[0] == pytest.approx(0.9 * 0.7025 / (0.7025 + 0.595) + 0.05)
    assert GroupDro({}, step_size=0.5, smoothing=0.0).weights(np.array([[np.log(9)], [0.0]])) == pytest.approx([0.75, 0.25])


def test_decisions_compare_with_the_reference():
    sources = (SourceReading("code", "anchor", (2.0, 1.0), 2.0), SourceReading("math", "current", (2.0, 2.0)))
    decision = GroupDro({"code": 1.0, "math": 1.5}, smoothing=0.0).decide(StageBoundary(0, 1, 2, sources))
    odds = np.exp((1.0 + 0.0) - (0.5 + 0.5))
    assert dict(decision.weights) == pytest.approx({"code": odds / (1 + odds), "math": 1 / (1 + odds)})


@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 2**16))
def test_no_domain_vanishes(num_domains, num_updates, seed):
    differences = np.random.default_rng(seed).normal(scale=5, size=(num_domains, num_updates))
    weights = GroupDro({}).weights(differences)
    assert weights.sum() == pytest.approx(1)
    assert weights.min() >= 1e-3 / num_domains * 0.999


def test_every_domain_is_open_at_once(smoke_builder, smoke_case):
    run = all_at_once(smoke_builder.build(replace(smoke_case, steps_per_stage=(3, 5))))
    assert [source.name for source in run.visible] == ["safety", "general", "table_small", "roleplay"]
    assert all(source.buffer is source.train for source in run.anchors)
    assert (run.tuning.stages_per_task, run.steps_per_stage) == (4, [4])  # 16 steps, as the case has.
    run.advance(GroupDro(dict.fromkeys(["safety", "general", "table_small", "roleplay"], 0.0)).decide(run.observe()))
    assert {source.age for source in run.observe().sources} == {0}


def test_a_mixture_is_learnt_again_the_same(smoke_builder, smoke_case):
    learnt, again = (learn_mixture(partial(smoke_builder.build, smoke_case)) for _ in range(2))
    assert learnt == again
    assert set(learnt.weights) == {"safety", "general", "table_small", "roleplay"}
    assert sum(learnt.weights.values()) == pytest.approx(1)
    assert max(learnt.weights.values()) > 0.26
    assert learnt.flops > 0
    run = smoke_builder.build(smoke_case)
    weights = static_mixture(learnt.weights).decide(run.observe()).weights
    assert weights["safety"] / weights["general"] == pytest.approx(learnt.weights["safety"] / learnt.weights["general"])


def test_what_is_far_above_its_reference_is_drawn_more(smoke_builder, smoke_case):
    """With the references of a run that learnt for long, the domain that the base knows least gets most at first."""
    run = all_at_once(smoke_builder.build(smoke_case))
    boundary = run.observe()
    losses = {source.name: source.losses[-1] for source in boundary.sources}
    weights = GroupDro(dict.fromkeys(losses, 0.0)).decide(boundary).weights
    assert max(weights, key=weights.__getitem__) == max(losses, key=losses.__getitem__)
