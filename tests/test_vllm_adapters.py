"""Adapters beside the base in a real vLLM, one set after another, each by the fingerprint that was saved with it."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from unittest.mock import patch

import pytest
import torch
from test_large import new_learner
from tiny_checkpoints import make_checkpoint

from cluster.evaluation_actor import ENVIRONMENT, generator_class
from proxymix.config import validated
from proxymix.data.encoding import EncodedSplit
from proxymix.errors import UserError
from proxymix.evaluation.verification import TOLERANCE, Fingerprint
from proxymix.learners.models import load_tokenizer, save_model


def differences(base, folders, config):
    """Of each folder's fingerprint, with each folder loaded, and then the base; in a process of its own."""
    os.environ.update(ENVIRONMENT, HF_HUB_OFFLINE="1")
    generator, found = generator_class("vllm")(base, config, load_tokenizer(base)), []
    for folder in (*folders, base):
        generator.load(folder)
        found.append([Fingerprint.read(other).difference(generator) for other in folders])
    return found


def refusal_without(library):
    """What is told where vLLM's compiled part finds no `library`."""
    with (
        patch.object(torch.ops, "_C", object()),
        patch("ctypes.CDLL", side_effect=OSError(f"{library}: cannot open shared object file: No such file or directory")),
        pytest.raises(UserError) as told,
    ):
        generator_class("vllm")
    return str(told.value)


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])  # The one is vLLM's own, the other transformers' within vLLM.
def test_vllm_takes_adapters_beside_the_base(tmp_path, architecture):
    base = make_checkpoint(tmp_path / "base", architecture, hidden_size=128)  # vLLM's attention on a CPU wants heads of 32.
    target = {"model": {"path": base, "implementation": "transformers"}, "lora": {"rank": 4, "alpha": 8, "merged": False}}
    config = validated({"name": "beside", "sequence": {"tasks": ["table_small@heldout-0"]}, "target": target}, "test")
    learner = new_learner(base, config.target.lora)
    split = EncodedSplit(torch.arange(5, 29)[None], torch.full((1, 24), -100), torch.tensor([24]))
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
        with torch.no_grad():
            for parameter in learner.parameters.values():
                parameter += 0.05
        save_model(learner.model, base, folder)
        Fingerprint.of(learner, [split]).write(folder)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        found = torch.tensor(process.submit(differences, base, [str(folder) for folder in folders], config).result())
        refusal = process.submit(refusal_without, "libnuma.so.1").result()
    assert refusal.startswith("evaluation.engine: vllm cannot be imported (libnuma.so.1: cannot open shared object file")
    assert "libnuma1" in refusal
    as_saved = torch.tensor([[True, False], [False, True], [False, False]])
    assert torch.equal(found < TOLERANCE["fp32"] / 100, as_saved)
    assert torch.equal(found < TOLERANCE["fp32"], as_saved)
