"""Operations counted from shapes are those that torch counts while a real step and a real validation run."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from proxymix.config import LoraConfig, TuningConfig
from proxymix.cost import BatchShape
from proxymix.data.encoding import IGNORED, Batch, EncodedSplit, stacked_shape
from proxymix.learners.learner import Learner
from proxymix.learners.models import load_model

SETTINGS = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 8}
GEOMETRIES = {
    "tied": {"num_key_value_heads": 4, "tie_word_embeddings": True},
    "grouped": {"num_key_value_heads": 2, "tie_word_embeddings": False},
    "wide": {"num_key_value_heads": 1, "head_dim": 24, "tie_word_embeddings": True},
}
ROWS, LENGTH, ANSWER = 5, 11, 3
"""Answers are the last tokens of each row; one row is scored at one position only."""
EVERYTHING = BatchShape(ROWS, LENGTH, num_tokens=ROWS * LENGTH, num_scored=ROWS * LENGTH)


@pytest.fixture(params=GEOMETRIES)
def folder(request, tmp_path):
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SETTINGS | GEOMETRIES[request.param])).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def batch():
    tokens = torch.randint(0, 50, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    labels = torch.full_like(tokens, IGNORED)
    labels[:, -ANSWER:] = tokens[:, -ANSWER:]
    labels[0, -ANSWER:-1] = IGNORED
    return Batch(tokens, labels)


def ragged(batch, ends=(LENGTH, 4, 7, 9, 5)):
    """Rows of `ends` tokens, each with a part of its answer in sight, as padded as they stand in a batch."""
    labels = torch.full_like(batch.labels, IGNORED)
    for row, end in enumerate(ends):
        labels[row, end - 1 - row % 3 : end] = batch.input_ids[row, end - 1 - row % 3 : end]
    return Batch(batch.input_ids, labels)


def torch_counts(work):
    """Attention as plain products: the counter knows no fused CPU kernel."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def counts(learner, batch):
    """Of a training step and a validation: (ours, torch's) each."""
    torch_trained = torch_counts(lambda: learner.train_step(batch))
    ends = (batch.labels != IGNORED).mul(torch.arange(1, LENGTH + 1)).amax(1)
    probes = {name: EncodedSplit(batch.input_ids[rows], batch.labels[rows], ends[rows]) for name, rows in (("a", slice(2)), ("b", slice(2, ROWS)))}
    torch_read = torch_counts(lambda: learner.losses(probes))
    trained, read = learner.shape.training_flops(batch.shape), learner.shape.forward_flops(stacked_shape(list(probes.values())))
    return (trained, torch_trained), (read, torch_read)


@pytest.mark.parametrize("implementation", ["lean", "transformers"])
def test_a_llama_costs_what_torch_counts(folder, batch, implementation):
    (trained, torch_trained), (read, torch_read) = counts(Learner(load_model(folder, implementation), TuningConfig()), batch)
    assert trained == torch_trained > 0
    assert read == torch_read == trained / 3


@pytest.mark.parametrize("implementation", ["lean", "transformers"])
def test_rows_of_several_lengths_cost_what_torch_counts(folder, batch, implementation):
    learner = Learner(load_model(folder, implementation), TuningConfig())
    (trained, torch_trained), (read, torch_read) = counts(learner, ragged(batch))
    assert (trained, read) == (torch_trained, torch_read)
    padded = replace(ragged(batch).shape, num_tokens=ROWS * LENGTH)
    assert (learner.shape.forward_flops(padded) > read) == (implementation == "lean")  # Which alone is spared the padding.


def test_lean_costs_as_much_where_all_is_asked_for_and_less_where_little_is(folder):
    lean, plain = (load_model(folder, implementation).shape for implementation in ("lean", "transformers"))
    little = replace(EVERYTHING, num_scored=ROWS)
    assert lean.training_flops(EVERYTHING) == plain.training_flops(EVERYTHING)
    assert lean.training_flops(little) < 0.8 * plain.training_flops(little)


def test_another_architecture_costs_what_torch_counts(tmp_path, batch):
    GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=50, n_positions=16)).save_pretrained(tmp_path)
    (trained, torch_trained), (read, torch_read) = counts(Learner(load_model(tmp_path, "transformers"), TuningConfig()), batch)
    assert (trained, read) == (torch_trained, torch_read)


def test_frozen_weights_need_no_gradient_of_their_own(folder, batch):
    model = load_model(folder, "transformers", LoraConfig(rank=2, alpha=4, modules=["q_proj", "v_proj"]))
    full = load_model(folder, "transformers").shape.training_flops(batch.shape)
    (trained, torch_trained), (read, torch_read) = counts(Learner(model, TuningConfig()), batch)
    assert read == torch_read
    # What the lowest layer is spared, its input being frozen too, is at most its products' input gradients.
    assert torch_trained <= trained <= torch_trained * (1 + 1 / SETTINGS["num_hidden_layers"])
    assert trained < 0.75 * full
