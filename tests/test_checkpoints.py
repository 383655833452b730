"""Any causal language model of transformers can be the target: loaded, adapted, tuned on answers, saved in its own architecture."""

import json
from pathlib import Path

import pytest
import torch
from tiny_checkpoints import ARCHITECTURES, make_checkpoint
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from proxymix.cases import CaseBuilder
from proxymix.config import LoraConfig, TuningConfig, validated
from proxymix.data.chat import as_chat
from proxymix.data.encoding import IGNORED, encode_split
from proxymix.errors import UserError
from proxymix.learners.learner import Learner
from proxymix.learners.models import check_window, load_model, load_tokenizer, save_model
from proxymix.types import Example

ROWS = [Example("What is the capital of France?", "Paris."), Example("Write hello in red:", "hello"), Example("one two three", "four five six")]
ADAPTED = {  # All that `qv` and `qkvo` name in each architecture.
    "llama": ({"q_proj", "v_proj"}, {"q_proj", "k_proj", "v_proj", "o_proj"}),
    "gpt_neox": ({"query_key_value"}, {"query_key_value", "dense"}),
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def checkpoint(request, tmp_path_factory):
    return request.param, make_checkpoint(tmp_path_factory.mktemp(request.param), request.param)


def batch_of(folder, rows=ROWS):
    return encode_split(rows, load_tokenizer(folder, "plain"), 96).batch()


def test_loss_and_saving_are_those_of_transformers(checkpoint, tmp_path):
    _, folder = checkpoint
    batch, learner = batch_of(folder), Learner(load_model(folder, "transformers"), TuningConfig())
    model = AutoModelForCausalLM.from_pretrained(folder)
    expected = F.cross_entropy(model(batch.input_ids).logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED)
    assert learner.train_step(batch) == pytest.approx(expected.item(), abs=1e-5)
    save_model(learner.model, folder, tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(saved) is type(model)
    ids = batch.input_ids[:1]
    with torch.no_grad():
        assert torch.allclose(saved(ids).logits, learner.model.logits(ids[None], torch.arange(ids.shape[1])[None, None])[0], atol=1e-5)
        assert not torch.allclose(saved(ids).logits, model(ids).logits, atol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == AutoTokenizer.from_pretrained(folder).chat_template


def test_settings_of_sampling_that_transformers_refuses_to_write_are_kept_as_they_are(tmp_path):
    folder, saved = make_checkpoint(tmp_path / "base", "llama"), tmp_path / "saved"
    settings = {"temperature": 0.9, "top_p": 0.6}  # As published by some, without do_sample.
    (Path(folder) / "generation_config.json").write_text(json.dumps(settings))
    saved.mkdir()
    save_model(load_model(folder, "transformers"), folder, saved)
    assert json.loads((saved / "generation_config.json").read_text()) == settings


@pytest.mark.parametrize("which", [0, 1])
def test_adapters_go_where_attention_has_them(checkpoint, which):
    architecture, folder = checkpoint
    model = load_model(folder, "transformers", LoraConfig(rank=2, alpha=4, modules=("qv", "qkvo")[which]))
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert adapted == ADAPTED.get(architecture, ADAPTED["llama"])[which]
    assert all("lora_" in name for name, parameter in model.named_parameters() if parameter.requires_grad)


def test_the_papers_adapters_are_the_default():
    assert LoraConfig().model_dump() == {"rank": 64, "alpha": 128.0, "modules": "qv", "merged": True}


@pytest.mark.parametrize(("modules", "lost"), [(["nowhere"], r"\['nowhere'\]"), (["q_proj", "value"], r"\['value'\]")])
def test_a_name_that_matches_nothing_is_told_with_those_there_are(tmp_path, modules, lost):
    folder = make_checkpoint(tmp_path, "llama")
    with pytest.raises(UserError, match=rf"^target.lora.modules: must name modules .* got {lost}, which match nothing; it has .*q_proj.*down_proj"):
        load_model(folder, "transformers", LoraConfig(rank=2, modules=modules))


def test_a_window_too_small_is_told_before_anything_is_encoded(tmp_path):
    folder = make_checkpoint(tmp_path, "gpt_neox")
    check_window(folder, 128)
    config = validated({"name": "x", "sequence": {"tasks": "long"}, "tuning": {"max_length": 129}}, "x")
    with pytest.raises(UserError, match=r"^tuning.max_length: must be at most the 128 tokens of the model's window .*, got 129; lower it$"):
        CaseBuilder(config, folder, None)
    with pytest.raises(UserError, match="model: transformers cannot load the configuration of the model"):
        check_window(tmp_path / "nothing", 8)


def test_a_tokenizer_without_pad_token_is_told_and_still_works(tmp_path, caplog):
    folder = make_checkpoint(tmp_path, "mistral")
    tokenizer = load_tokenizer(folder)
    assert [record.getMessage() for record in caplog.records] == [
        f"the tokenizer in {folder!r} has no pad token; its end token pads, which is neither attended to nor scored"
    ]
    losses = [Learner(load_model(folder, "transformers"), TuningConfig()).losses({"x": split}) for split in padded(tokenizer)]
    assert losses[0]["x"] == pytest.approx(losses[1]["x"], abs=1e-6)


def padded(tokenizer):
    """The same rows, once padded with the end token and once with another."""
    splits = [encode_split([as_chat(row) for row in ROWS], tokenizer, 64)]
    tokenizer.pad_token = "a"
    return [*splits, encode_split([as_chat(row) for row in ROWS], tokenizer, 64)]


def test_a_long_conversation_loses_its_beginning_and_never_its_answer(tmp_path):
    tokenizer = load_tokenizer(make_checkpoint(tmp_path, "llama"))
    row = as_chat(Example("one two three " * 40, "four five six"))
    labels = encode_split([row], tokenizer, 32).labels[0]
    assert tokenizer.decode(labels[labels != IGNORED]) == "four five six<eos>"
    with pytest.raises(UserError, match=r"tuning.max_length: must hold the whole answer and one prompt token, got 4 for an answer"):
        encode_split([row], tokenizer, 4)
