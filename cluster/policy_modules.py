"""The learnt policies as RLlib modules. Each computes exactly what its numpy twin in `proxymix.controllers.policy` does.

observation + noise → mean, features Φ, mask → action = mean + Φ·(σ∘ε), its log-probability → PPO → parameters_of(module)
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import Tensor, nn

from cluster.exploration import MaskedGaussian, noise_size
from proxymix.config import ControllerConfig
from proxymix.controllers.policy import initial_parameters
from proxymix.observation import SOURCE_FEATURES, equivariant_layout

VARIANCE_FLOOR = 1e-4
"""Added to every action's variance, so that features near 0 do not make a log-probability infinite."""

SIGMA_SLOWDOWN = 3.0
"""Noise held for an episode shrinks before the gains have moved unless log σ learns this many times slower."""


@dataclass(frozen=True)
class Scores:
    """What a policy makes of a batch of observations with N source slots."""

    mean: Tensor
    """Mean action, `[batch, N]`."""
    features: Tensor
    """Φ, `[batch, N, K]`: how each of the K noise numbers moves each action."""
    mask: Tensor
    """1 where the action changes the mixture, `[batch, N]`."""


class PolicyModule(TorchRLModule, ValueFunctionAPI):
    """Exploration, distribution and critic interface that both architectures share.

    `model_config` holds `controller` (a dumped `ControllerConfig`) and `seed`.
    """

    def setup(self) -> None:
        """Parameters under the numpy policy's names, the noise scale, the critic."""
        self.controller = controller = ControllerConfig.model_validate(self.model_config["controller"])
        seed = self.model_config["seed"]
        parameters = initial_parameters(controller.architecture, controller.hidden_units, controller.max_sources, np.random.default_rng(seed))
        self.policy_names = tuple(parameters)
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(torch.tensor(value, dtype=torch.float32)))
        self.slowdown = SIGMA_SLOWDOWN if controller.exploration == "per_episode" else 1.0
        initial = self.slowdown * float(np.log(controller.initial_sigma))
        self.slowed_log_sigma = nn.Parameter(torch.full((noise_size(controller),), initial))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.build_critic()
        self.action_dist_cls = MaskedGaussian

    @abstractmethod
    def build_critic(self) -> None:
        """Registers the critic's parameters."""

    @abstractmethod
    def scores(self, observation: Tensor) -> Scores:
        """The policy on `observation`, `[batch, size]`, without its noise."""

    @property
    def sigma(self) -> Tensor:
        """Standard deviation of each noise number, `[K]`."""
        return torch.exp(self.slowed_log_sigma / self.slowdown)

    def without_noise(self, batch: dict[str, Any]) -> Tensor:
        """The environment's own observation."""
        observation: Tensor = batch[Columns.OBS][..., : -len(self.slowed_log_sigma)]
        return observation

    def _forward_train(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self._distribution_inputs(self._explored_scores(batch))}

    @torch.no_grad()
    def _forward_exploration(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        scores = self._explored_scores(batch)
        noise = batch[Columns.OBS][..., -len(self.slowed_log_sigma) :]
        actions = scores.mean + (scores.features @ (self.sigma * noise).unsqueeze(-1)).squeeze(-1)
        inputs = self._distribution_inputs(scores)
        # With actions and log-probabilities given, RLlib draws none of its own.
        return {Columns.ACTIONS: actions, Columns.ACTION_LOGP: MaskedGaussian(inputs).logp(actions), Columns.ACTION_DIST_INPUTS: inputs}

    @torch.no_grad()
    def _forward_inference(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        return {Columns.ACTIONS: self.scores(self.without_noise(batch)).mean}

    def _explored_scores(self, batch: dict[str, Any]) -> Scores:
        """The scores; with noise on the actions themselves (as many numbers as slots), Φ is the identity."""
        scores = self.scores(self.without_noise(batch))
        if self.controller.exploration == "per_decision":
            return Scores(scores.mean, _identity(scores.mean), scores.mask)
        return scores

    def _distribution_inputs(self, scores: Scores) -> Tensor:
        variance = (scores.features.square() @ self.sigma.square()) + VARIANCE_FLOOR
        return torch.cat([scores.mean, 0.5 * variance.log(), scores.mask], dim=-1)


class EquivariantModule(PolicyModule):
    """`EquivariantPolicy`. Its critic is one number: all episodes of an iteration share a case, so their mean is the baseline."""

    def build_critic(self) -> None:
        """A single learnt value."""
        self.value = nn.Parameter(torch.zeros(()))

    def compute_values(self, batch: dict[str, Any], embeddings: Any | None = None) -> Tensor:
        """`[batch]`."""
        return self.value.expand(batch[Columns.OBS].shape[:-1])

    def scores(self, observation: Tensor) -> Scores:
        """Linear in the gains: mean = Φ·[context_gain, source_gain]."""
        slots = self.controller.max_sources
        context, sources, visible, current = (observation[..., part] for part in equivariant_layout(slots))
        own = sources.unflatten(-1, (slots, len(SOURCE_FEATURES)))  # [batch, N, F]
        if self.controller.hidden_units:
            both = torch.cat([own, context.unsqueeze(-2).expand(*own.shape[:-1], -1)], dim=-1)
            own = torch.cat([own, torch.tanh(both @ self.source_weight.T + self.source_bias)], dim=-1)
            context = torch.cat([context, torch.tanh(context @ self.context_weight.T + self.context_bias)], dim=-1)
        replayable = visible - current
        features = torch.cat([current.unsqueeze(-1) * context.unsqueeze(-2), replayable.unsqueeze(-1) * own], dim=-1)
        mean = features @ torch.cat([self.context_gain, self.source_gain])
        return Scores(mean, features, visible * replayable.amax(-1, keepdim=True))


class FlatModule(PolicyModule):
    """`FlatPolicy`, the paper's: policy and value are separate two-layer tanh MLPs."""

    def build_critic(self) -> None:
        """The value MLP, as wide as the policy's."""
        size, width = self.weight_0.shape[1], self.weight_0.shape[0]
        self.critic = nn.Sequential(nn.Linear(size, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))

    def compute_values(self, batch: dict[str, Any], embeddings: Any | None = None) -> Tensor:
        """`[batch]`."""
        values: Tensor = self.critic(self.without_noise(batch)).squeeze(-1)
        return values

    def scores(self, observation: Tensor) -> Scores:
        """Logits; the visible slots are those up to the current task's."""
        hidden = torch.tanh(observation @ self.weight_0.T + self.bias_0)
        hidden = torch.tanh(hidden @ self.weight_1.T + self.bias_1)
        mean = hidden @ self.weight_2.T + self.bias_2
        slots = self.controller.max_sources
        current = observation[..., 2 * slots : 3 * slots]
        visible = current.flip(-1).cumsum(-1).flip(-1)
        return Scores(mean, _identity(mean), visible * (visible.sum(-1, keepdim=True) > 1))


def module_spec(controller: ControllerConfig, seed: int) -> RLModuleSpec:
    """The module of the configured architecture, for RLlib to build wherever it needs one."""
    module_class = FlatModule if controller.architecture == "flat" else EquivariantModule
    return RLModuleSpec(module_class=module_class, model_config={"controller": controller.model_dump(mode="json"), "seed": seed})


def parameters_of(module: PolicyModule) -> dict[str, NDArray[np.float64]]:
    """The policy's parameters under the numpy policy's names; noise scale and critic are left behind."""
    return {name: getattr(module, name).detach().double().numpy().copy() for name in module.policy_names}


def _identity(mean: Tensor) -> Tensor:
    """`[batch, N, N]`."""
    slots = mean.shape[-1]
    return torch.eye(slots, dtype=mean.dtype, device=mean.device).expand(*mean.shape[:-1], slots, slots)
