import json
from dataclasses import replace

import numpy as np
import pytest
from fake_tuning import boundary
from hypothesis import given
from hypothesis import strategies as st

from proxymix.artifacts import write_json
from proxymix.controllers import frozen as frozen_file
from proxymix.controllers.baselines import DeclaredFallback, Ramp, UniformReplay, baseline
from proxymix.controllers.frozen import CARD, WEIGHTS, FrozenController, copy_controller, save_controller
from proxymix.controllers.policy import build_policy, initial_parameters
from proxymix.errors import UserError
from proxymix.types import SourceReading, StageBoundary

VARIANTS = [("equivariant", 0), ("equivariant", 4), ("flat", 8)]
seeds = st.integers(0, 2**16)


def parameters(architecture, hidden_units, seed=0, max_sources=6):
    """Initial parameters, shaken so that every one of them matters."""
    rng = np.random.default_rng(seed)
    initial = initial_parameters(architecture, hidden_units, max_sources, rng)
    return {name: value + 0.3 * rng.normal(size=value.shape) for name, value in initial.items()}


def frozen(architecture="equivariant", hidden_units=0, seed=0):
    return FrozenController(build_policy(architecture, parameters(architecture, hidden_units, seed)), {"name": "test"})


def scene(seed=0, num_past=2, anchors=2):
    return boundary(np.random.default_rng(seed), num_past, anchors=anchors)


def real_scene(seed, num_past, anchors):
    """Histories as long as they would be: two stages a task, an older task was seen longer."""
    rng = np.random.default_rng(seed)

    def reading(name, role, age):
        losses = tuple(rng.uniform(0.1, 3.0, size=2 * age + 2).tolist())
        if role == "current":
            return SourceReading(name, role, losses)
        unread = int(rng.integers(len(losses)))
        return SourceReading(name, role, losses, float(rng.uniform(0.1, 1.0)), unread, int(rng.integers(1, 5)))

    sources = [reading(f"anchor{i}", "anchor", num_past) for i in range(anchors)]
    sources += [reading(f"task{i}", "past", num_past - i) for i in range(num_past)]
    return StageBoundary(num_past, 1, 2, (*sources, reading("now", "current", 0)))


@pytest.mark.parametrize(("architecture", "hidden_units"), VARIANTS)
def test_a_saved_controller_decides_as_before(tmp_path, architecture, hidden_units):
    values = {name: value.astype(np.float32) for name, value in parameters(architecture, hidden_units).items()}
    digest = save_controller(tmp_path, values, name="mine", architecture=architecture, facts={"seed": 7})
    loaded, before = FrozenController.load(tmp_path), build_policy(architecture, values)
    assert (loaded.name, loaded.sha256, loaded.card["seed"], loaded.max_sources) == ("mine", digest, 7, before.max_sources)
    for seed in range(5):
        decision = loaded.decide(scene(seed))
        expected = before.mixture(before.act(before.observe(scene(seed))), scene(seed))
        assert list(decision.weights.values()) == expected.tolist()
        assert tuple(decision.weights) == scene(seed).names
        assert (decision.controller, decision.sha256) == ("mine", digest)


def test_freezing_is_deterministic_to_the_byte(tmp_path):
    values = parameters("equivariant", 4)
    digests = [save_controller(tmp_path / name, values, name="x", architecture="equivariant", facts={}) for name in "ab"]
    shuffled = dict(reversed(values.items()))
    assert save_controller(tmp_path / "c", shuffled, name="x", architecture="equivariant", facts={}) == digests[0] == digests[1]


@pytest.mark.parametrize("position", [0, 50, -1])
def test_a_flipped_byte_is_refused(tmp_path, position):
    save_controller(tmp_path, parameters("equivariant", 0), name="mine", architecture="equivariant", facts={})
    content = bytearray((tmp_path / WEIGHTS).read_bytes())
    content[position] ^= 1
    (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(UserError, match="sha256 must be"):
        FrozenController.load(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"schema_version": 2', '"schema_version": 1', "schema_version must be 2, got 1.*train anew"),
        ('"context.bias"', '"context.mood"', "observation must be"),
        ('"rate": 0.1', '"rate": 0.2', "normalisation must be"),
        ('"equivariant"', '"flat"', "architecture must be equivariant, got flat"),
        ('"without": []', '"without": ["loss"]', r"without must be \[\], got \['loss'\]"),
        ("{", "(", "cannot read"),
    ],
)
def test_a_card_of_another_version_is_refused(tmp_path, old, new, message):
    save_controller(tmp_path, parameters("equivariant", 0), name="mine", architecture="equivariant", facts={})
    (tmp_path / CARD).write_text((tmp_path / CARD).read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        FrozenController.load(tmp_path)


def test_what_the_weights_do_without_cannot_be_taken_from_the_card(tmp_path):
    save_controller(tmp_path, parameters("equivariant", 0), name="mine", architecture="equivariant", facts={}, without=["trend", "age"])
    assert FrozenController.load(tmp_path).policy.without == ("age", "trend")
    write_json(tmp_path / CARD, {**json.loads((tmp_path / CARD).read_text()), "without": ["age"]})
    with pytest.raises(UserError, match=r"without must be \['age', 'trend'\], got \['age'\]"):
        FrozenController.load(tmp_path)


@pytest.mark.parametrize("name", [WEIGHTS, CARD])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_file_that_is_too_large_is_refused_wherever_it_is(tmp_path, monkeypatch, name, scheme):
    save_controller(tmp_path, parameters("equivariant", 0), name="mine", architecture="equivariant", facts={})
    monkeypatch.setattr(frozen_file, "MAX_FILE_BYTES", max((tmp_path / one).stat().st_size for one in (WEIGHTS, CARD)))
    FrozenController.load(f"{scheme}{tmp_path}")
    with (tmp_path / name).open("ab") as file:
        file.write(b" " * frozen_file.MAX_FILE_BYTES)
    with pytest.raises(UserError, match=f"{name} must be at most .* bytes"):
        FrozenController.load(f"{scheme}{tmp_path}")


def test_an_absent_controller_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match=r"run jobs\.train_controller first"):
        FrozenController.load(tmp_path / "absent")


def test_one_controller_comes_with_the_project_learnt_where_no_table_is_made(tmp_path):
    shipped = FrozenController.load("shipped")
    assert shipped.name == "proxymix"
    assert shipped.max_sources is None
    assert {source.partition("@")[2] for source in shipped.card["training"]["sources"]} <= {f"train-{world}" for world in range(8)}
    copy = copy_controller("shipped", tmp_path / "mine")
    assert FrozenController.load(tmp_path / "mine").sha256 == copy.sha256 == shipped.sha256


def test_a_flat_controller_refuses_more_sources_than_it_was_trained_on():
    flat = frozen("flat", 8)
    assert flat.max_sources == 6
    flat.decide(scene(num_past=3))
    with pytest.raises(ValueError, match="at most 6 for a flat controller, got 7"):
        flat.decide(scene(num_past=4))


@given(st.integers(0, 37), st.integers(0, 2), seeds)
def test_an_equivariant_controller_takes_any_number_of_sources(num_past, anchors, seed):
    decision = frozen(hidden_units=4).decide(scene(seed, num_past, anchors))
    weights = np.array(list(decision.weights.values()))
    assert len(weights) == num_past + anchors + 1
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1)


@given(st.sampled_from([0, 4]), st.integers(0, 5), st.integers(0, 3), seeds, st.randoms())
def test_the_order_of_the_sources_does_not_matter(hidden_units, num_past, anchors, seed, random):
    controller, ordered = frozen("equivariant", hidden_units), real_scene(seed, num_past, anchors)
    sources = list(ordered.sources)
    random.shuffle(sources)
    shuffled = controller.decide(replace(ordered, sources=tuple(sources)))
    assert dict(shuffled.weights) == pytest.approx(dict(controller.decide(ordered).weights), abs=1e-9)


@given(st.integers(0, 5), st.integers(0, 2), seeds)
def test_padding_to_slots_changes_nothing(num_past, anchors, seed):
    """Training sees a fixed size, the service as many slots as there are sources: the mixture must be the same."""
    values, boundary_ = parameters("equivariant", 4), scene(seed, num_past, anchors)
    padded, exact = (build_policy("equivariant", values, slots) for slots in (11, None))
    mixtures = [policy.mixture(policy.act(policy.observe(boundary_)), boundary_) for policy in (padded, exact)]
    assert mixtures[0] == pytest.approx(mixtures[1], abs=1e-12)


@pytest.mark.parametrize("hidden_units", [0, 4])
@pytest.mark.parametrize("num_past", [0, 1, 6])
def test_an_untrained_equivariant_controller_is_the_ramp(hidden_units, num_past):
    initial = initial_parameters("equivariant", hidden_units, 12, np.random.default_rng(0))
    untrained = FrozenController(build_policy("equivariant", initial), {"name": "initial"})
    decision, ramp = untrained.decide(scene(1, num_past)), Ramp(10.0).decide(scene(1, num_past))
    assert dict(decision.weights) == pytest.approx(dict(ramp.weights))
    count = num_past + 2
    assert 1 - ramp.weights[scene(1, num_past).current.name] == pytest.approx(count / (count + 10))


def test_an_untrained_flat_controller_is_nearly_uniform():
    initial = initial_parameters("flat", 0, 6, np.random.default_rng(0))
    assert initial["weight_1"].shape == (256, 256)
    weights = FrozenController(build_policy("flat", initial), {"name": "initial"}).decide(scene()).weights
    assert list(weights.values()) == pytest.approx([0.2] * 5, abs=0.02)


def test_uniform_replay_by_hand():
    decision = UniformReplay(0.3).decide(scene(num_past=1, anchors=2))
    assert decision.controller == "random_30"
    assert dict(decision.weights) == pytest.approx({"anchor0": 0.1, "anchor1": 0.1, "task0": 0.1, "task1": 0.7})


def test_with_nothing_to_replay_the_current_task_gets_everything():
    for controller in (UniformReplay(0.5), Ramp(), frozen(), frozen("flat", 8)):
        assert dict(controller.decide(scene(num_past=0, anchors=0)).weights) == {"task0": 1.0}


def test_a_declared_fallback_says_why():
    decision = DeclaredFallback(UniformReplay(0.3), "rho 0.2 < 0.6").decide(scene())
    assert (decision.controller, decision.fallback) == ("random_30", "rho 0.2 < 0.6")
    assert dict(decision.weights) == dict(UniformReplay(0.3).decide(scene()).weights)


@pytest.mark.parametrize(("method", "share"), [("no_replay", 0.0), ("random_10", 0.1), ("random_2.5", 0.025), ("random_100", 1.0), ("ramp_4", 0.5)])
def test_baselines_by_name(method, share):
    controller = baseline(method)
    assert controller.name == controller.decide(scene()).controller == method
    assert 1 - controller.decide(scene(num_past=2, anchors=2)).weights["task2"] == pytest.approx(share)


@pytest.mark.parametrize("method", ["random", "random_", "random_101", "random_-5", "ramp_0", "ramp_x", "oracle", "random_1e1"])
def test_an_unknown_baseline_is_the_users_to_mend(method):
    with pytest.raises(UserError, match="methods: must be"):
        baseline(method)


def test_impossible_shares_are_refused():
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        UniformReplay(1.2)
    with pytest.raises(ValueError, match="positive"):
        Ramp(0.0)
