"""Scores are the model's own, to what it does behind its output layer, whichever way they are asked for; and what cannot be had is told."""

import pytest
import torch
from tiny_checkpoints import ARCHITECTURES, SCALED, UNUSUAL, make_checkpoint
from transformers import AutoModelForCausalLM

from proxymix.config import LoraConfig, TuningConfig, validated
from proxymix.data.encoding import IGNORED, encode_split
from proxymix.errors import UserError
from proxymix.evaluation.generation import TransformersGenerator
from proxymix.learners.large import LargeLearner
from proxymix.learners.learner import Learner
from proxymix.learners.models import TransformersModel, load_model, load_tokenizer
from proxymix.tuning_config import TargetConfig
from proxymix.types import Example

ROWS = [Example("one two three", "four five"), Example("What is the capital of France?", "Paris."), Example("one", "two three four five six")]
EVERY = {**ARCHITECTURES, **SCALED, "opt": UNUSUAL["opt"]}


@pytest.fixture(scope="module", params=EVERY)
def folder(request, tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp(request.param), request.param)


def batch_of(folder):
    return encode_split(ROWS, load_tokenizer(folder, "plain"), 64).batch()


@torch.no_grad()
def published(folder, input_ids):
    """What the model of transformers gives, by the plainest attention there is."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")(input_ids).logits


def test_scores_are_those_of_the_whole_model(folder):
    batch, model = batch_of(folder), load_model(folder, "transformers")
    expected, scored = published(folder, batch.input_ids), batch.labels != IGNORED
    with torch.no_grad():
        assert torch.allclose(model(batch.input_ids, scored), expected[scored], atol=1e-5)
        places = torch.tensor([[[3, 0], [1, 2], [0, 5]]])
        asked = torch.stack([expected[row, places[0, row]] for row in range(3)])
        assert torch.allclose(model.logits(batch.input_ids[None], places)[0], asked, atol=1e-5)


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)], ids=["full", "lora"])
def test_scaled_scores_are_tuned_on_as_they_are(tmp_path, name, lora):
    folder = make_checkpoint(tmp_path, name)
    batch, split = batch_of(folder), encode_split(ROWS, load_tokenizer(folder, "plain"), 64)
    kept = batch.labels != IGNORED
    right = published(folder, batch.input_ids)[kept].log_softmax(-1).gather(1, batch.labels[kept][:, None])
    expected = -float(right.mean())
    bare = load_model(folder, "transformers")
    with torch.no_grad():
        states = bare.causal.model(batch.input_ids).last_hidden_state[kept]
        unscaled = torch.nn.functional.cross_entropy(bare.causal.lm_head(states), batch.labels[kept])
    assert abs(float(unscaled) - expected) > 1e-4  # Else this test could not fail.
    ways = [{}, {"pack_tokens": 64}, {"micro_batch_size": 1, "gradient_checkpointing": True}]
    for way in ways:
        learner = LargeLearner(load_model(folder, "transformers", lora), TuningConfig(max_length=64), TargetConfig(**way))
        assert learner.train_steps([batch])[0] == pytest.approx(expected, abs=2e-5)
        assert torch.isfinite(torch.tensor(learner.losses_of_all({"x": split})[0]["x"]))
    assert Learner(load_model(folder, "transformers", lora), TuningConfig()).train_step(batch) == pytest.approx(expected, abs=2e-5)


def test_capped_attention_is_scored_as_it_is_tuned(tmp_path):
    folder = make_checkpoint(tmp_path, "gemma2")
    config = validated({"name": "x", "sequence": {"tasks": "long"}}, "x")
    row = list(range(3, 20))
    found = TransformersGenerator(folder, config, load_tokenizer(folder)).log_probabilities([row])[0]
    scores = published(folder, torch.tensor([row]))[0, :-1].log_softmax(-1)
    assert found == pytest.approx(scores.gather(1, torch.tensor(row[1:])[:, None])[:, 0].tolist(), abs=1e-5)
    with torch.no_grad():
        fused = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")(torch.tensor([row])).logits[0, :-1]
    assert not torch.allclose(fused.log_softmax(-1), scores, atol=1e-5)


def test_packs_need_a_model_that_is_told_positions(tmp_path):
    model = TransformersModel(make_checkpoint(tmp_path, "bloom"))
    with pytest.raises(
        UserError, match=r"^target.pack_tokens: must be null for this model \(BloomForCausalLM\), which takes no position_ids .*; set it to null$"
    ):
        LargeLearner(model, TuningConfig(), TargetConfig(pack_tokens=64))
    assert LargeLearner(model, TuningConfig(), TargetConfig()).train_steps([batch_of(str(tmp_path))])[0] > 0


def test_an_output_layer_that_is_gone_round_is_told(tmp_path, monkeypatch):
    model = TransformersModel(make_checkpoint(tmp_path, "llama"))
    monkeypatch.setattr(model.model, "get_output_embeddings", lambda: torch.nn.Linear(1, 1))
    with pytest.raises(UserError, match=r"^model: LlamaForCausalLM must give its scores by one call of its output layer, got 0; take a model"):
        model.logits(torch.tensor([[[3, 4]]]), torch.tensor([[[0]]]))
