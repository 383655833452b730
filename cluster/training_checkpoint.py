"""Where a training stands, as one safetensors file: weights, Adam's moments, the parameters to be averaged. No pickles.

learner → TrainingState → checkpoint/training.safetensors → TrainingState → learner
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.learner import Learner
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from proxymix.artifacts import write_bytes
from proxymix.errors import UserError

CHECKPOINT = Path("checkpoint") / "training.safetensors"


@dataclass(frozen=True)
class TrainingState:
    """After some number of iterations; before the first, nothing but zero counts."""

    iteration: int = 0
    """Iterations done."""
    module: Mapping[str, Tensor] = field(default_factory=dict)
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    """`<parameter index>.<moment>` → tensor."""
    recent: tuple[Mapping[str, Tensor], ...] = ()
    """The policy's parameters after each of the last iterations, oldest first; what the policy would be the mean of if training ended here."""

    def after(self, learner: Learner, parameters: Mapping[str, NDArray[np.float64]], average_last: float) -> TrainingState:
        """One iteration later; `average_last` is the share of all iterations so far whose parameters are kept."""
        num_kept = max(1, round(average_last * (self.iteration + 1)))
        # The network computes in float32, so nothing is lost.
        latest = {name: torch.from_numpy(value).float() for name, value in parameters.items()}
        module = {name: value.detach().clone() for name, value in learner.module[DEFAULT_MODULE_ID].state_dict().items()}
        moments = learner.get_optimizer(DEFAULT_MODULE_ID).state_dict()["state"]
        optimizer = {f"{index}.{name}": value.clone() for index, state in moments.items() for name, value in state.items()}
        return TrainingState(self.iteration + 1, module, optimizer, (*self.recent, latest)[-num_kept:])

    def restore(self, learner: Learner) -> None:
        """Puts weights and moments into a freshly built learner."""
        if self.iteration == 0:
            return
        learner.module[DEFAULT_MODULE_ID].load_state_dict(self.module)
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in self.optimizer.items():
            index, _, moment = name.partition(".")
            state.setdefault(int(index), {})[moment] = value
        optimizer = learner.get_optimizer(DEFAULT_MODULE_ID)
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

    def mean_parameters(self) -> dict[str, NDArray[np.float64]]:
        """The policy to freeze if training ended here; nothing before the first iteration."""
        names = self.recent[0] if self.recent else ()
        return {name: np.mean([parameters[name].double().numpy() for parameters in self.recent], axis=0) for name in names}


def save_state(out: Path, state: TrainingState, fingerprint: str) -> None:
    """Replaces the checkpoint in `out` whole or not at all."""
    parts = {"module": state.module, "optimizer": state.optimizer} | {f"recent{n}": values for n, values in enumerate(state.recent)}
    tensors = {f"{part}/{name}": value.contiguous() for part, values in parts.items() for name, value in values.items()}
    facts = {"iteration": str(state.iteration), "num_recent": str(len(state.recent)), "fingerprint": fingerprint}
    write_bytes(out / CHECKPOINT, save(tensors, facts))


def load_state(out: Path, fingerprint: str | None) -> TrainingState:
    """The state in `out`; a fresh one where there is none. `fingerprint` None takes it whatever it was made under.

    Raises:
        UserError: it was made under another configuration.
    """
    path = out / CHECKPOINT
    if not path.exists():
        return TrainingState()
    with safe_open(path, "pt") as file:
        facts, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    if fingerprint is not None and facts["fingerprint"] != fingerprint:
        raise UserError(
            f"controller: the training in {str(out)!r} was made with other settings, seed, cases or base model; "
            "give the run another name, or delete that folder to train anew"
        )
    parts: dict[str, dict[str, Tensor]] = {"module": {}, "optimizer": {}}
    for name, value in tensors.items():
        part, _, rest = name.partition("/")
        parts.setdefault(part, {})[rest] = value
    recent = tuple(parts[f"recent{n}"] for n in range(int(facts["num_recent"])))
    return TrainingState(int(facts["iteration"]), parts["module"], parts["optimizer"], recent)
