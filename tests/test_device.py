"""Proxies on a device of their own: every tensor that meets the model was moved there, and the numbers are the CPU's."""

import sys
from contextlib import nullcontext

import pytest
import torch
from elsewhere import ELSEWHERE, Elsewhere, Machine, WrongPlaceError
from tiny_checkpoints import make_checkpoint

from proxymix import cases
from proxymix.cases import proxy_builder
from proxymix.config import ModelConfig
from proxymix.continual import advance_together
from proxymix.controllers.baselines import UniformReplay
from proxymix.data.encoding import Batch
from proxymix.errors import UserError
from proxymix.learners.learner import Learner, answer_places


@pytest.fixture
def machine(monkeypatch):
    """One whose GPUs are the device that pretends."""
    monkeypatch.setattr(cases, "tuning_device", lambda use_gpu, key, off: ELSEWHERE if use_gpu else torch.device("cpu"))
    # What torch looks up by the name of a device.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(sys.modules["torch.optim.optimizer"], "_get_fused_kernels_supported_devices", lambda: ["meta"])


def on_gpu(config):
    return config.model_copy(update={"proxy": config.proxy.model_copy(update={"gpus_per_runner": 1.0})})


def numbers(config, folder, case, num_replicas=1):
    """Of two stages of every replica: training and boundary losses, accuracies; and the learner."""
    builder = proxy_builder(config, folder, num_replicas)
    runs = [builder.build(case) for _ in range(num_replicas)]
    records = [advance_together(runs, [UniformReplay(0.2 + 0.1 * index).decide(run.observe()) for index, run in enumerate(runs)]) for _ in range(2)]
    state = {name: tensor.clone() for name, tensor in builder.learner.state_dict().items()}
    builder.learner.load_state_dict(state)
    losses = [record.training_loss for together in records for record in together]
    losses += [loss for run in runs for source in run.observe().sources for loss in source.losses]
    return losses, runs[0].validation_accuracies(), builder.learner


def assert_alike(first, second):
    """But for rounding: fused attention is not to be had elsewhere."""
    assert first[0] == pytest.approx(second[0], abs=1e-5)
    assert first[1] == second[1]


@pytest.mark.parametrize("num_replicas", [1, 3])
def test_lean_proxies_put_everything_on_their_device(smoke_config, base_folder, smoke_case, machine, num_replicas):
    here = numbers(smoke_config, base_folder, smoke_case, num_replicas)
    with Machine():
        there = numbers(on_gpu(smoke_config), base_folder, smoke_case, num_replicas)
        assert isinstance(there[2].flat, Elsewhere)
        assert_alike(there, here)


STEP = {"micro_batch_size": 2, "gradient_checkpointing": True}


@pytest.mark.parametrize(("name", "packs"), [("llama", {}), ("gpt_neox", {"pack_tokens": 96})], ids=["rows", "packs"])
def test_transformers_proxies_put_everything_on_their_device(smoke_config, smoke_case, machine, tmp_path, name, packs):
    folder = make_checkpoint(tmp_path, name)
    model = ModelConfig(path=folder, implementation="transformers")
    config = smoke_config.model_copy(update={"proxy": smoke_config.proxy.model_copy(update={"model": model, **STEP, **packs})})
    here = numbers(config, folder, smoke_case)
    with Machine():
        there = numbers(on_gpu(config), folder, smoke_case)
        assert all(isinstance(parameter, Elsewhere) for parameter in there[2].parameters.values())
        assert_alike(there, here)


def test_without_a_gpu_the_config_is_to_blame(smoke_config, base_folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^proxy.gpus_per_runner: needs a GPU that torch sees .* or set it to 0$"):
        proxy_builder(on_gpu(smoke_config), base_folder)


def test_a_forgotten_transfer_is_found(smoke_config, base_folder, smoke_case, machine, monkeypatch):
    def forgetful(self, batch: Batch):
        places, labels = answer_places(batch.labels)
        return self.model.logits(batch.input_ids, places).float(), labels

    monkeypatch.setattr(Learner, "_answers", forgetful)
    with Machine(), pytest.raises(WrongPlaceError):
        numbers(on_gpu(smoke_config), base_folder, smoke_case)
