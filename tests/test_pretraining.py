import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from proxymix.config import ModelConfig, TuningConfig, validated
from proxymix.data.encoding import encode_split
from proxymix.data.sources import configured_source
from proxymix.learners import pretraining
from proxymix.learners.learner import Learner
from proxymix.learners.models import load_model, load_tokenizer
from proxymix.learners.pretraining import PRESETS, base_folder, pretrain_base, pretraining_corpus

NANO = ModelConfig(preset="nano")


@pytest.fixture
def own_data(tmp_path):
    """A config whose one anchor is a file of one's own, with byte-level BPE."""
    lines = [json.dumps({"prompt": f"What is {i} plus one?", "response": f"It is {i + 1}."}) for i in range(400)]
    (tmp_path / "sums.jsonl").write_text("\n".join(lines))
    tree = {
        "name": "own",
        "methods": ["no_replay"],
        "data_root": str(tmp_path),
        "cache_root": str(tmp_path / "bases"),
        "sequence": {"tasks": [{"format": "jsonl", "path": "secret.jsonl"}], "anchors": [{"format": "jsonl", "path": "sums.jsonl"}]},
        "pretraining": {"tokenizer": "bpe", "vocabulary_size": 320, "num_steps": 3, "batch_size": 4},
        "tuning": {"validation_size": 8, "max_length": 64},
        "controller": {"max_sources": 6},
    }
    return validated(tree, "own")


def with_(config, **sections):
    return config.model_copy(update={name: getattr(config, name).model_copy(update=changes) for name, changes in sections.items()})


def test_a_base_is_an_ordinary_model_folder(base_folder):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base_folder), load_tokenizer(base_folder)
    width, layers, inner = PRESETS["nano"]
    assert (model.config.hidden_size, model.config.num_hidden_layers, model.config.intermediate_size) == (width, layers, inner)
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id


def test_a_base_has_learnt_something(smoke_config, base_folder):
    rows = encode_split(pretraining.pretraining_corpus(smoke_config)[:64], load_tokenizer(base_folder), smoke_config.tuning.max_length)
    learner = Learner(load_model(base_folder, "lean"), TuningConfig())
    loss = learner.losses({"corpus": rows})["corpus"]
    assert loss < 0.8 * learner_at_random(base_folder).losses({"corpus": rows})["corpus"]


def learner_at_random(folder):

    model = load_model(folder, "lean")
    model.initialise(torch.Generator().manual_seed(0))
    return Learner(model, TuningConfig())


def test_a_base_is_trained_once(own_data):
    calls = []
    folder = pretrain_base(own_data, NANO, lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (3, 3)]
    assert pretrain_base(own_data, NANO, lambda *_: pytest.fail("trained again")) == folder == base_folder(own_data, NANO)


def test_training_is_deterministic_to_the_byte(own_data, tmp_path):
    folders = [Path(pretrain_base(own_data.model_copy(update={"cache_root": str(tmp_path / name)}), NANO)) for name in "ab"]
    assert folders[0].name == folders[1].name
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes()


@pytest.mark.parametrize(
    "changes",
    [{"pretraining": {"num_steps": 4}}, {"pretraining": {"learning_rate": 1e-3}}, {"tuning": {"max_length": 48}}, {"evaluation": {"test_size": 8}}],
)
def test_whatever_shapes_a_base_names_its_folder(own_data, changes):
    assert base_folder(with_(own_data, **changes), NANO) != base_folder(own_data, NANO)


def test_seed_data_and_preset_name_the_folder_too(own_data):
    folders = {
        base_folder(own_data, NANO),
        base_folder(own_data, ModelConfig(preset="micro")),
        base_folder(own_data.model_copy(update={"seed": 1}), NANO),
    }
    with open(Path(own_data.data_root) / "sums.jsonl", "a") as file:
        file.write('\n{"prompt": "one more", "response": "row"}')
    assert len(folders | {base_folder(own_data, NANO)}) == 4


def test_what_does_not_shape_a_base_leaves_it_alone(own_data):
    """The tasks of the sequence above all: their data does not even exist here."""
    same = with_(own_data, tuning={"learning_rate": 0.5, "stages_per_task": 9}, sequence={"tasks": "long@heldout-0"})
    assert base_folder(same, NANO) == base_folder(own_data, NANO)


def test_a_base_never_sees_what_it_is_judged_on(own_data):
    corpus = {example.prompt for example in pretraining_corpus(own_data)}
    anchor = configured_source(own_data, own_data.sequence.anchors[0])
    assert corpus == {example.prompt for example in anchor.train}
    assert not corpus & {example.prompt for example in (*anchor.validation, *anchor.test)}
    assert len(anchor.validation) == 64


def test_a_model_that_exists_is_its_own_base(own_data):
    assert pretrain_base(own_data, ModelConfig(path="/models/big")) == "/models/big"
    assert base_folder(own_data, ModelConfig(hub="org/name")) == "org/name"
