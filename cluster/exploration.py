"""How a policy explores: noise that the environment hands over, and the distribution it makes of the actions.

    episode seed → ε in the observation → action = mean + Φ·(σ∘ε)      Gaussian(mean, Φ²·σ²) over the entries that matter

RLlib samples nothing itself, so an episode is a function of the weights, its case and its seed, wherever and whenever it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector.utils import batch_space
from ray.rllib.core.distribution.torch.torch_distribution import TorchDeterministic, TorchDistribution
from torch import Tensor
from torch.distributions import Normal

from proxymix.config import ControllerConfig
from proxymix.observation import CONTEXT_FEATURES, SOURCE_FEATURES

Observation = np.ndarray[Any, np.dtype[np.float32]]


def noise_size(controller: ControllerConfig) -> int:
    """Numbers of noise the policy wants: one per gain (equivariant, per episode), else one per source slot.

    One number per slot held for a whole episode is noise on the flat policy's output biases.
    """
    if controller.architecture == "equivariant" and controller.exploration == "per_episode":
        return len(CONTEXT_FEATURES) + len(SOURCE_FEATURES) + 2 * controller.hidden_units
    return controller.max_sources


class ExplorationNoise(gymnasium.vector.VectorWrapper):
    """Appends ε ~ N(0, I) to every proxy's observation: one draw for the whole episode, or a fresh one at every decision.

    A lasting draw comes in mirrored pairs (`prepare`).
    Independent noise hardly moves the return of a run of some twenty decisions; noise that lasts the episode does (docs/log.md).
    """

    def __init__(self, env: gymnasium.vector.VectorEnv[Any, Any, Any], size: int, *, every_decision: bool) -> None:
        """Args: `env` has `select_case(index)`; `size` is `noise_size` of the policy that will act."""
        super().__init__(env)
        self.size, self.every_decision = size, every_decision
        self.generators = [np.random.default_rng(0) for _ in range(env.num_envs)]
        self.signs = np.ones((env.num_envs, 1), np.float32)
        self.noise = np.zeros((env.num_envs, size), np.float32)
        inner = env.single_observation_space
        assert isinstance(inner, gymnasium.spaces.Box)
        limit = np.full(size, 100.0, np.float32)
        self.single_observation_space = gymnasium.spaces.Box(np.append(inner.low, -limit), np.append(inner.high, limit), dtype=np.float32)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)

    def prepare(self, case_index: int, noise_seeds: Sequence[Sequence[int]]) -> None:
        """The next episodes are on that case, each with noise from its own seed alone.

        The last number of a seed counts episodes. Where noise lasts the episode, every second one has its predecessor's mirrored,
        so that what is no doing of the noise cancels between the two (antithetic sampling; docs/log.md says what it is worth).
        """
        self.env.select_case(case_index)
        if not self.every_decision:
            self.signs = np.array([[-1.0 if seed[-1] % 2 else 1.0] for seed in noise_seeds], np.float32)
            noise_seeds = [(*seed[:-1], seed[-1] // 2) for seed in noise_seeds]
        self.generators = [np.random.default_rng(seed) for seed in noise_seeds]

    def reset(self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """The inner environment's reset, with these episodes' noise."""
        observations, info = self.env.reset(seed=seed, options=options)
        self._draw()
        return self._with_noise(observations), info

    def step(self, actions: Observation) -> tuple[Observation, Any, Any, Any, dict[str, Any]]:
        """The inner environment's step, with the noise of the next decisions."""
        observations, rewards, terminated, truncated, info = self.env.step(actions)
        if self.every_decision:
            self._draw()
        return self._with_noise(observations), rewards, terminated, truncated, info

    def _draw(self) -> None:
        self.noise = self.signs * np.stack([generator.standard_normal(self.size) for generator in self.generators]).astype(np.float32)

    def _with_noise(self, observations: Observation) -> Observation:
        return np.concatenate([observations, self.noise], axis=1)


class MaskedGaussian(TorchDistribution):
    """A diagonal Gaussian in which only the entries under a mask count: log-probability, entropy and KL are sums over them.

    Logits are `[batch, 3N]`: mean, log standard deviation, mask (1 where the entry changes the mixture).
    """

    def __init__(self, logits: Tensor) -> None:
        """Args: `logits` as in the class's docstring."""
        mean, log_std, self.mask = logits.chunk(3, dim=-1)
        super().__init__(mean, log_std)

    def _get_torch_distribution(self, mean: Tensor, log_std: Tensor) -> Normal:
        return Normal(mean, log_std.exp(), validate_args=False)

    def logp(self, value: Tensor, **kwargs: Any) -> Tensor:
        """`[batch]`, nats."""
        return self._total(super().logp(value, **kwargs))

    def entropy(self) -> Tensor:
        """`[batch]`, nats."""
        return self._total(super().entropy())

    def kl(self, other: TorchDistribution) -> Tensor:
        """KL(self ‖ other), `[batch]`, nats."""
        return self._total(super().kl(other))

    def to_deterministic(self) -> TorchDeterministic:
        """The mean."""
        return TorchDeterministic(loc=self._dist.mean)

    @staticmethod
    def required_input_dim(space: gymnasium.Space[Any], **_: Any) -> int:
        """Three numbers an action entry."""
        assert space.shape is not None
        return 3 * int(np.prod(space.shape))

    def _total(self, terms: Tensor) -> Tensor:
        return torch.where(self.mask > 0, terms, 0.0).sum(-1)
