"""The logit check: what a trainer leaves beside the weights, and what becomes of an engine that does not answer like it."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_large import LORA, WAYS, new_learner
from tiny_checkpoints import make_checkpoint

from cluster.evaluation_actor import EvaluationActor
from proxymix.artifacts import target_folder, write_json
from proxymix.cases import load_sources, sequence_tasks
from proxymix.config import LoraConfig, validated
from proxymix.data.encoding import EncodedSplit
from proxymix.evaluation.generation import TransformersGenerator
from proxymix.evaluation.scoring import assemble_accuracy, score_path
from proxymix.evaluation.verification import NUM_ROWS, NUM_TOKENS, TOLERANCE, Fingerprint, StaleWeightsError
from proxymix.learners.models import load_tokenizer, save_model

SPLITS = [
    EncodedSplit(torch.randint(5, 90, (2, 40), generator=torch.Generator().manual_seed(n)), torch.full((2, 40), -100), torch.tensor([n, 40]))
    for n in (2, 9, 40, 30, 7)
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("llama"), "llama")


def saved(learner, base, folder):
    """A checkpoint as a run leaves it."""
    folder.mkdir()
    save_model(learner.model, base, folder)
    Fingerprint.of(learner, SPLITS).write(folder)
    return folder


def perturb(folder):
    """Of one matrix, the smallest that counts."""
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if "layers.1.self_attn.o_proj" in name)
    tensors[name] = tensors[name] + 0.05
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def config_of(precision="fp32"):
    tree = {"name": "verified", "sequence": {"tasks": ["table_small@heldout-0"]}, "evaluation": {"engine": "transformers", "test_size": 4}}
    return validated(tree | {"target": {"model": {"preset": "nano", "implementation": "transformers"}, "precision": precision}}, "test")


@pytest.mark.parametrize(
    ("way", "lora", "precision"), [("whole", None, "fp32"), ("all of it", LORA, "fp32"), ("packs", None, "bf16"), ("packs", LORA, "bf16")]
)
def test_what_is_saved_thinks_as_the_model_that_was_tuned(llama, tmp_path, way, lora, precision):
    learner = new_learner(llama, lora, precision, **WAYS[way])
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    random = torch.get_rng_state()
    folder = saved(learner, llama, tmp_path / "saved")
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[name], value) for name, value in learner.state_dict().items())
    fingerprint = Fingerprint.read(folder)
    assert [len(row) for row in fingerprint.tokens] == [2, 9, NUM_TOKENS, NUM_TOKENS]
    assert len(fingerprint.tokens) == NUM_ROWS
    assert fingerprint == Fingerprint.of(learner, SPLITS)
    generator = TransformersGenerator(str(folder), config_of(precision), load_tokenizer(llama))
    assert fingerprint.difference(generator) < TOLERANCE[precision] / 10
    if precision == "fp32":
        perturb(folder)
        generator.load(str(folder))
        assert fingerprint.difference(generator) > TOLERANCE[precision]


class Broken:
    """An engine whose weights are no numbers any more."""

    def log_probabilities(self, rows):
        return [[math.nan] * (len(row) - 1) for row in rows]


def test_no_number_is_a_difference_and_no_file_no_fingerprint(tmp_path):
    assert Fingerprint([[1, 2]], [[-0.5]]).difference(Broken()) == math.inf
    assert Fingerprint.read(tmp_path) is None


def test_adapters_alone_are_what_peft_loads(llama, tmp_path):
    from peft import AutoPeftModelForCausalLM

    learner = new_learner(llama, LoraConfig(rank=4, alpha=8, merged=False))
    with torch.no_grad():
        for parameter in learner.parameters.values():
            parameter += 0.05
    folder = saved(learner, llama, tmp_path / "saved")
    assert not (folder / "model.safetensors").exists()
    generator = TransformersGenerator(llama, config_of(), load_tokenizer(llama))
    assert Fingerprint.read(folder).difference(generator) > TOLERANCE["fp32"]
    generator.model = AutoPeftModelForCausalLM.from_pretrained(folder)
    assert Fingerprint.read(folder).difference(generator) < TOLERANCE["fp32"] / 10


@pytest.fixture(scope="module")
def folders(smoke_builder, smoke_config, base_folder, tmp_path_factory):
    """The base of a run, a checkpoint of a later model, and one whose weights were changed behind its fingerprint."""
    root, learner = tmp_path_factory.mktemp("folders"), smoke_builder.learner
    learner.restore_base()
    splits = [source.probe for source in smoke_builder.anchors]
    for _ in range(20):
        learner.train_step(splits[0].batch())
    (root / "good").mkdir()
    save_model(learner.model, base_folder, root / "good")
    Fingerprint.of(learner, splits).write(root / "good")
    shutil.copytree(root / "good", root / "wrong")
    perturb(root / "wrong")
    return root


@pytest.fixture
def actor(smoke_config, base_folder):
    evaluation = smoke_config.evaluation.model_copy(update={"engine": "transformers"})
    config = smoke_config.model_copy(update={"evaluation": evaluation})
    return lambda: EvaluationActor(config, base_folder, load_sources(config))


def test_a_stale_engine_is_not_believed_and_a_new_one_is(actor, folders, base_folder, monkeypatch):
    first = actor()
    first.warm_up()
    assert first.score(base_folder)["weights"] == {"verified": False, "difference": None, "rebuilt": False}
    healthy = first.score(str(folders / "good"))
    assert healthy["weights"].items() >= {"verified": True, "rebuilt": False}.items()
    stale = actor()
    stale.warm_up()
    monkeypatch.setattr(stale.generator, "load", lambda folder: None)
    with pytest.raises(StaleWeightsError, match=r"differ from those of the model that was saved by .* nats, more than 0.01"):
        stale.score(str(folders / "good"))
    rebuilt = actor().score(str(folders / "good"))
    assert rebuilt["weights"].items() >= {"verified": True, "rebuilt": True}.items()
    assert rebuilt["sources"] == healthy["sources"]


def test_wrong_weights_are_no_score_and_never_zero(actor, folders, smoke_config, tmp_path):
    score = actor().score(str(folders / "wrong"))
    assert score["weights"].items() >= {"verified": False, "rebuilt": True}.items()
    assert "with an engine built from it" in score["unscored"]
    assert score["safety"] is None
    assert all(row["accuracy"] is None and row["num_unscored"] == row["num_rows"] > 0 for row in score["sources"].values())
    json.dumps(score, allow_nan=False)
    write_json(score_path(target_folder(tmp_path, "no_replay", 0), 1), score)
    tasks = [spec.label for spec in sequence_tasks(smoke_config)]
    accuracy = assemble_accuracy(tmp_path, "no_replay", 0, tasks, ["safety", "general"])
    assert accuracy["unscored"] == {"task1": score["unscored"]}
    assert accuracy["matrix"][1] == [None, None]
