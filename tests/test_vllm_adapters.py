"""A real vLLM in a process of its own: adapters beside the base, one set after another; and an engine in two parts."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from unittest.mock import patch

import pytest
import torch
from test_large import new_learner
from tiny_checkpoints import make_checkpoint
from transformers import AutoModelForCausalLM

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


def told(first, second, config):
    """Answers and log probabilities of the model in `first`, and of `second` once its weights are loaded."""
    os.environ.update(ENVIRONMENT, HF_HUB_OFFLINE="1")
    generator, found = generator_class("vllm")(first, config, load_tokenizer(first)), []
    rows = [list(range(5, 29)), list(range(7, 20))]
    for folder in (first, second):
        generator.load(folder)
        found.append((generator.generate(rows), generator.log_probabilities(rows)))
    return found


@pytest.mark.cluster  # No Ray, but as many processes.
def test_an_engine_in_two_parts_answers_as_one_does(tmp_path):
    """On a CPU, where the parts are processes; the config is of a machine with GPUs, which the engine does not ask for."""
    first, second = (make_checkpoint(tmp_path / name, "llama", hidden_size=128) for name in ("first", "second"))
    model = AutoModelForCausalLM.from_pretrained(second)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.05)
    model.save_pretrained(second)
    found = []
    for parallel in (1, 2):
        config = {
            "target": {"model": {"path": first, "implementation": "transformers"}, "parallelism": {"use_gpu": True}},
            "evaluation": {"tensor_parallel": parallel, "max_new_tokens": 8, "kv_cache_mib": 16},
        }
        whole = validated({"name": "parts", "sequence": {"tasks": ["table_small@heldout-0"]}, **config}, "test")
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            found.append(process.submit(told, first, second, whole).result())
    for (answers, scores), (answers_in_parts, scores_in_parts) in zip(*found, strict=True):
        assert answers_in_parts == answers
        for row, row_in_parts in zip(scores, scores_in_parts, strict=True):
            assert row_in_parts == pytest.approx(row, abs=TOLERANCE["fp32"])
    assert found[0][0] != found[0][1]
