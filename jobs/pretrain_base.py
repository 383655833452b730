"""Base models of proxy and target: presets are trained on the anchors, existing models are used as they are."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Literal

from safetensors import safe_open

from cluster.pilots import ROLES, pretrain_bases
from cluster.session import ray_session
from jobs.entry import launch
from jobs.run import Run
from proxymix.artifacts import write_json
from proxymix.learners.pretraining import base_cost
from proxymix.tuning_config import ModelConfig


def pretrain_base(run: Run) -> tuple[str, str]:
    """The base folders of (proxy, target), cached by content; noted under `base/`."""
    config = run.config
    with run.phase("pretrain_base"), run.progress("base models") as update:
        folders, trained = pretrain_bases(config, [config.proxy.model, config.target.model], update)
    for role, folder in zip(ROLES, folders, strict=True):
        if getattr(config, role).model.preset and not (role == "target" and folder == folders[0]):  # Equal bases are trained once.
            run.account.add("pretraining", Path(folder).name, role, base_cost(folder), cached=folder not in trained)
        write_json(run.folder / "base" / f"{role}.json", {"folder": folder, "num_parameters": _num_parameters(folder)})
    return folders[0], folders[1]


def preset_bases(run: Run, models: Sequence[ModelConfig], role: Literal["proxy", "target"], title: str) -> list[str]:
    """The base folders of further presets, in order, each with its line in the account as `role`'s."""
    with run.progress(title) as update:
        folders, trained = pretrain_bases(run.config, models, update)
    for folder in folders:
        run.account.add("pretraining", Path(folder).name, role, base_cost(folder), cached=folder not in trained)
    return folders


def _num_parameters(folder: str) -> int | None:
    """Counted from the safetensors' headers; None where there are none to read (a hub name)."""
    shapes = []
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, "np") as tensors:
            shapes += [tensors.get_slice(key).get_shape() for key in tensors.keys()]  # noqa: SIM118 - a safetensors file is no mapping
    return sum(map(prod, shapes)) if shapes else None


def job(run: Run) -> None:
    """Stand-alone: connect, train, say where."""
    with ray_session(run.config):
        for folder in pretrain_base(run):
            run.say(folder)


if __name__ == "__main__":
    launch(job)
