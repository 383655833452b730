import numpy as np
import pytest
import torch
from fake_tuning import boundary, tiny_config
from gymnasium.spaces import Box
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.rllib.core.columns import Columns
from torch.distributions import Normal, kl_divergence

from cluster.exploration import ExplorationNoise, MaskedGaussian, noise_size
from cluster.policy_modules import VARIANCE_FLOOR, module_spec, parameters_of
from proxymix.controllers.policy import build_policy

SLOTS = 6
VARIANTS = [("equivariant", 0), ("equivariant", 3), ("flat", 16)]


def build(architecture="equivariant", hidden_units=0, exploration="per_episode", scramble=True):
    controller = tiny_config(architecture, hidden_units=hidden_units, exploration=exploration).controller
    size = len(build_policy(architecture, parameters_for(controller), slots=SLOTS).observe(boundary(np.random.default_rng(0))))
    spec = module_spec(controller, seed=3)
    spec.observation_space = Box(-100.0, 100.0, (size + noise_size(controller),), np.float32)
    spec.action_space = Box(-20.0, 20.0, (SLOTS,), np.float32)
    module = spec.build()
    if scramble:
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def parameters_for(controller):
    from proxymix.controllers.policy import initial_parameters

    return initial_parameters(controller.architecture, controller.hidden_units, controller.max_sources, np.random.default_rng(3))


def observed(module, scene, noise=None):
    policy = build_policy(module.controller.architecture, parameters_of(module), slots=SLOTS)
    noise = np.zeros(noise_size(module.controller)) if noise is None else noise
    return {Columns.OBS: torch.tensor(np.append(policy.observe(scene), noise)[None], dtype=torch.float32)}, policy


def explored(module, num_past=2, seed=0):
    rng = np.random.default_rng(seed)
    batch, policy = observed(module, boundary(rng, num_past), rng.normal(size=noise_size(module.controller)))
    return batch, policy, module.forward_exploration(batch)


@pytest.mark.parametrize(("architecture", "hidden_units"), VARIANTS)
@pytest.mark.parametrize("exploration", ["per_episode", "per_decision"])
@settings(max_examples=20, deadline=None)
@given(num_past=st.integers(0, 3), anchors=st.integers(0, 2), seed=st.integers(0, 2**16))
def test_mean_action_and_mixture_are_the_numpy_policys(architecture, hidden_units, exploration, num_past, anchors, seed):
    module = build(architecture, hidden_units, exploration)
    scene = boundary(np.random.default_rng(seed), num_past, anchors=anchors)
    batch, policy = observed(module, scene)
    action = module.forward_inference(batch)[Columns.ACTIONS][0].double().numpy()
    expected = policy.act(policy.observe(scene))
    np.testing.assert_allclose(action, expected, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(policy.mixture(action, scene), policy.mixture(expected, scene), atol=1e-5)


@pytest.mark.parametrize(("architecture", "hidden_units"), VARIANTS)
def test_training_starts_from_the_numpy_initialisation(architecture, hidden_units):
    module = build(architecture, hidden_units, scramble=False)
    expected = parameters_for(module.controller)
    found = parameters_of(module)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-7)
    np.testing.assert_allclose(module.sigma.detach().numpy(), module.controller.initial_sigma, rtol=1e-6)


@pytest.mark.parametrize(("architecture", "hidden_units"), VARIANTS)
@pytest.mark.parametrize("exploration", ["per_episode", "per_decision"])
def test_exploration_log_probability_is_the_training_distributions(architecture, hidden_units, exploration):
    module = build(architecture, hidden_units, exploration)
    batch, _, out = explored(module)
    trained = MaskedGaussian.from_logits(module.forward_train(batch)[Columns.ACTION_DIST_INPUTS])
    torch.testing.assert_close(trained.logp(out[Columns.ACTIONS]), out[Columns.ACTION_LOGP])
    torch.testing.assert_close(trained.kl(MaskedGaussian.from_logits(out[Columns.ACTION_DIST_INPUTS])), torch.zeros(1))


def test_noise_on_the_gains_acts_as_perturbed_gains_would():
    module = build("equivariant", 3)
    rng = np.random.default_rng(4)
    scene, noise = boundary(rng), rng.normal(size=noise_size(module.controller))
    batch, policy = observed(module, scene, noise)
    shift = module.sigma.detach().double().numpy() * noise
    context = len(policy.parameters["context_gain"])
    perturbed = dict(policy.parameters)
    perturbed["context_gain"] = perturbed["context_gain"] + shift[:context]
    perturbed["source_gain"] = perturbed["source_gain"] + shift[context:]
    expected = build_policy("equivariant", perturbed, slots=SLOTS).act(policy.observe(scene))
    np.testing.assert_allclose(module.forward_exploration(batch)[Columns.ACTIONS][0], expected, atol=1e-5)


@pytest.mark.parametrize("exploration", ["per_episode", "per_decision"])
def test_variance_is_that_of_the_actions_really_taken(exploration):
    module = build("equivariant", 0, exploration)
    rng = np.random.default_rng(2)
    scene, noise = boundary(rng), rng.normal(size=(4000, noise_size(module.controller)))
    batch, policy = observed(module, scene)
    rows = np.concatenate([np.repeat(policy.observe(scene)[None], len(noise), axis=0), noise], axis=1)
    actions = module.forward_exploration({Columns.OBS: torch.tensor(rows, dtype=torch.float32)})[Columns.ACTIONS]
    mean, log_std, mask = module.forward_train(batch)[Columns.ACTION_DIST_INPUTS][0].detach().chunk(3)
    matters = mask > 0
    torch.testing.assert_close(actions.var(0)[matters] + VARIANCE_FLOOR, (2 * log_std[matters]).exp(), rtol=0.1, atol=1e-3)
    torch.testing.assert_close(actions.mean(0)[matters], mean[matters], rtol=0.1, atol=0.1)


@pytest.mark.parametrize(("architecture", "hidden_units"), VARIANTS)
def test_what_cannot_change_the_mixture_has_no_say(architecture, hidden_units):
    module = build(architecture, hidden_units)
    batch, _, out = explored(module, num_past=1)
    inputs, visible = module.forward_train(batch)[Columns.ACTION_DIST_INPUTS], 4
    moved = out[Columns.ACTIONS].clone()
    moved[:, visible:] += 100.0
    torch.testing.assert_close(MaskedGaussian.from_logits(inputs).logp(moved), out[Columns.ACTION_LOGP])
    moved[:, visible - 1] += 1.0
    assert not torch.allclose(MaskedGaussian.from_logits(inputs).logp(moved), out[Columns.ACTION_LOGP])


@pytest.mark.parametrize("architecture", ["equivariant", "flat"])
def test_nothing_matters_where_there_is_nothing_to_replay(architecture):
    module = build(architecture)
    batch, _ = observed(module, boundary(np.random.default_rng(0), num_past=0, anchors=0))
    distribution = MaskedGaussian.from_logits(module.forward_train(batch)[Columns.ACTION_DIST_INPUTS])
    assert distribution.logp(torch.randn(1, SLOTS)).item() == 0.0
    assert distribution.entropy().item() == 0.0


def test_masked_gaussian_sums_over_the_mask_alone():
    mean, log_std, mask = torch.randn(3, SLOTS), torch.randn(3, SLOTS), torch.tensor([1.0, 0, 1, 1, 0, 0]).expand(3, SLOTS)
    distribution = MaskedGaussian.from_logits(torch.cat([mean, log_std, mask], -1))
    other = MaskedGaussian.from_logits(torch.cat([mean + 1, log_std - 1, mask], -1))
    plain, plain_other, value, kept = Normal(mean, log_std.exp()), Normal(mean + 1, (log_std - 1).exp()), torch.randn(3, SLOTS), mask[0] > 0
    torch.testing.assert_close(distribution.logp(value), plain.log_prob(value)[:, kept].sum(-1))
    torch.testing.assert_close(distribution.entropy(), plain.entropy()[:, kept].sum(-1))
    torch.testing.assert_close(distribution.kl(other), kl_divergence(plain, plain_other)[:, kept].sum(-1))
    torch.testing.assert_close(distribution.to_deterministic().sample(), mean)
    assert distribution.required_input_dim(Box(-1.0, 1.0, (SLOTS,))) == 3 * SLOTS


def test_values_one_number_or_a_network():
    for architecture in ("equivariant", "flat"):
        module = build(architecture)
        values = [module.compute_values(explored(module, seed=seed)[0]) for seed in (1, 2)]
        assert values[0].shape == (1,)
        assert torch.equal(*values) == (architecture == "equivariant")


@pytest.mark.parametrize("every_decision", [False, True])
def test_noise_is_a_function_of_its_seed_and_lasts_as_told(every_decision):
    from fake_tuning import FakeTuning, fake_cases, in_parallel

    def episode(seed):
        env.prepare(1, seed)
        observations = [env.reset()[0]]
        while len(observations) < 7:
            observations.append(env.step(np.zeros((2, SLOTS), np.float32))[0])
        return np.stack(observations)[:, :, -5:]  # [steps, proxies, noise]

    env = ExplorationNoise(in_parallel(FakeTuning)(tiny_config(), "base", fake_cases(), 2), 5, every_decision=every_decision)
    both, again = (episode([(0, 1), (0, 2)]) for _ in range(2))
    first, other = both[:, 0], both[:, 1]
    assert env.env.get_attr("case_index") == (1, 1)
    np.testing.assert_array_equal(episode([(0, 2), (0, 1)])[:, ::-1], both)
    np.testing.assert_array_equal(both, again)
    assert not np.array_equal(first, other)
    assert len(np.unique(first, axis=0)) == (7 if every_decision else 1)
    assert env.reset()[0] in env.observation_space
    second, third = np.moveaxis(episode([(0, 2), (0, 3)]), 1, 0)
    np.testing.assert_array_equal(second, other)
    assert np.array_equal(third, -second) == (not every_decision)  # A lasting draw and its mirror image.
