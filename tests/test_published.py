"""Names on the hub, pinned or not, from a cache such as the hub's own client keeps; nobody is asked.

In a process of its own: the client reads its variables once.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from datasets.arrow_writer import ArrowWriter
from huggingface_hub.file_download import repo_folder_name
from tiny_checkpoints import make_checkpoint
from transformers import AutoModelForCausalLM

from cluster.evaluation_actor import ENVIRONMENT
from proxymix.config import validated
from proxymix.data import hub
from proxymix.errors import UserError
from proxymix.learners.published import Published, reference
from proxymix.planning.reach import _ask
from proxymix.tuning_config import ModelConfig, SourceConfig

FIRST, SECOND = "1" * 40, "2" * 40
LOAD = """
import json, sys, torch
from proxymix.config import validated
from proxymix.data.sources import configured_source
from proxymix.errors import UserError
from proxymix.evaluation.generation import TransformersGenerator
from proxymix.learners.models import check_window, load_model, load_tokenizer, save_model
from proxymix.learners.pretraining import base_folder
from proxymix.planning.geometry import architecture
from pathlib import Path

def model(revision, out):
    target = {"model": {"hub": "org/tiny", "revision": revision, "implementation": "transformers"}}
    config = validated({"name": "x", "sequence": {"tasks": "long"}, "target": target}, "x")
    base = base_folder(config, config.target.model)
    tokenizer = load_tokenizer(base, "plain")
    check_window(base, 64)
    loaded = load_model(base, "transformers")
    save_model(loaded, base, Path(out))
    asked = TransformersGenerator(base, config, tokenizer)
    width = architecture(config, config.target.model).hidden_size
    same = torch.equal(asked.model.get_input_embeddings().weight, loaded.token_embeddings())
    return [base, float(loaded.token_embeddings().detach().sum()), len(tokenizer), width, same]

def data(revision):
    spec = {"format": "huggingface", "path": "org/rows", "revision": revision}
    config = validated({"name": "x", "sequence": {"tasks": [spec]}, "methods": ["no_replay"], "proxy": {"model": {"path": "x"}},
                        "target": {"model": {"path": "x"}}}, "x")
    return configured_source(config, config.sequence.tasks[0]).train[0].response

def told(load, *arguments):
    try:
        return load(*arguments)
    except UserError as error:
        return str(error)

out = sys.argv[1]
print(json.dumps({
    **{f"model {r}": told(model, r, f"{out}/saved-{r}") for r in (None, "v2", "2" * 40, "v3")},
    **{f"data {r}": told(data, r) for r in (None, "1" * 40, "v2")},
}))
"""

SCORE = """
import json
from proxymix.config import validated
from proxymix.learners.models import load_tokenizer
from cluster.vllm_engine import VllmGenerator

target = {"model": {"hub": "org/tiny", "revision": "v2", "implementation": "transformers"}}
config = validated({"name": "x", "sequence": {"tasks": "long"}, "target": target}, "x")
engine = VllmGenerator("org/tiny@v2", config, load_tokenizer("org/tiny@v2"))
found = [engine.log_probabilities([list(range(5, 25))])[0]]
engine.load("org/tiny@v2")
print()
print(json.dumps([*found, engine.log_probabilities([list(range(5, 25))])[0]]))
"""


def publish(cache, revision, names, **settings):
    """A model's state as the hub's client keeps it; returns the sum of its embeddings."""
    home = cache / repo_folder_name(repo_id="org/tiny", repo_type="model")
    (home / "refs").mkdir(parents=True, exist_ok=True)
    for name in names:
        (home / "refs" / name).write_text(revision)
    folder = make_checkpoint(home / "snapshots" / revision, "llama", **settings)
    (Path(folder) / "generation_config.json").write_text(json.dumps({"temperature": 0.9, "eos_token_id": 2}))
    return float(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).get_input_embeddings().weight.detach().sum())


def prepare(cache, revision):
    """A data set as `datasets` keeps what it has prepared."""
    folder = cache / "org___rows" / "default" / "0.0.0" / revision
    folder.mkdir(parents=True)
    rows = datasets.Dataset.from_dict({"prompt": [f"q {i}" for i in range(40)], "response": ["first"] * 40})
    with ArrowWriter(path=str(folder / "rows-train.arrow"), features=rows.features) as writer:
        for row in rows:
            writer.write(row)
        writer.finalize()
    split = datasets.SplitInfo("train", num_examples=40, dataset_name="rows")
    info = datasets.DatasetInfo(features=rows.features, splits=datasets.SplitDict({"train": split}), config_name="default", version="0.0.0")
    info.dataset_name, info.builder_name = "rows", "parquet"
    info.write_to_directory(str(folder))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    # vLLM's attention on a CPU wants heads of 32.
    sums = publish(root / "models", FIRST, ["main"], hidden_size=128), publish(root / "models", SECOND, ["v2"], hidden_size=256)
    prepare(root / "data", FIRST)
    places = {"HF_HUB_CACHE": str(root / "models"), "HF_DATASETS_CACHE": str(root / "data"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return root, sums, answer(LOAD, root, places), places


def answer(program, root, places):
    """What `program` says in its last line, run where the hub's cache is in `places`."""
    command = [sys.executable, "-W", "ignore", "-c", program, str(root)]
    ended = subprocess.run(command, env=os.environ | places, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.parametrize(("revision", "which", "width"), [(None, 0, 128), ("v2", 1, 256), (SECOND, 1, 256)])
def test_a_hub_name_is_loaded_at_its_revision(loaded, revision, which, width):
    root, sums, found, _ = loaded
    base, total, vocabulary, hidden, same = found[f"model {revision}"]
    assert base == (f"org/tiny@{revision}" if revision else "org/tiny")
    assert total == pytest.approx(sums[which], abs=1e-4)
    assert sums[0] != pytest.approx(sums[1], abs=1e-2)
    assert (hidden, same) == (width, True)
    saved = json.loads((root / f"saved-{revision}" / "config.json").read_text())
    assert saved["hidden_size"] == width
    assert (root / f"saved-{revision}" / "tokenizer.json").exists()
    assert json.loads((root / f"saved-{revision}" / "generation_config.json").read_text()) == {"temperature": 0.9, "eos_token_id": 2}
    assert vocabulary == saved["vocab_size"]


def test_a_revision_that_is_not_there_is_one_message(loaded):
    told = loaded[2]["model v3"]
    assert told.startswith("model: transformers cannot load the tokenizer of the model 'org/tiny@v3' (")
    assert told.endswith("; check hub, revision and the network, or export HF_TOKEN")
    assert "\n" not in told


def test_vllm_loads_and_reloads_the_revision(loaded):
    """Left to itself it reloads the newest."""
    root, _, _, places = loaded
    found = answer(SCORE, root, places | ENVIRONMENT)
    model = AutoModelForCausalLM.from_pretrained(root / "saved-v2", dtype=torch.float32)
    row = torch.arange(5, 25)
    with torch.no_grad():
        expected = model(row[None]).logits[0, :-1].log_softmax(-1).gather(1, row[1:, None])[:, 0].tolist()
    for told in found:
        assert told == pytest.approx(expected, abs=1e-4)


def test_a_data_set_from_the_cache_is_of_its_revision_or_none(loaded):
    found = loaded[2]
    assert found["data None"] == found[f"data {FIRST}"] == "first"
    assert found["data v2"].startswith(
        f"revision: the hub is away, and what is here of 'org/rows' is commit {FIRST}, got 'v2'; set it to that commit"
    )


def test_the_revision_reaches_the_hub(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(hub, "_check_revision", lambda *place: asked.append(place))
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda path, **place: asked.append((path, place)) or datasets.Dataset.from_dict({"prompt": ["a"], "response": ["b"]}),
    )
    hub.read_huggingface("org/rows", {}, "main", revision="v2")
    assert asked == [("org/rows", "main", "v2"), ("org/rows", {"name": "main", "revision": "v2"})]
    with pytest.raises(UserError, match="revision: must be null for a folder, got 'v2'"):
        hub.read_huggingface(str(tmp_path), {}, revision="v2")
    assert _ask(lambda name, **settings: (name, settings["revision"]), "org/rows@v2") == ("org/rows", "v2")


def test_folders_and_names_are_told_apart(tmp_path):
    strange = tmp_path / "model@home"
    strange.mkdir()
    assert Published.of(strange) == (str(strange), None)
    assert Published.of(reference(ModelConfig(hub="org/tiny", revision="v2"))).arguments == {
        "pretrained_model_name_or_path": "org/tiny",
        "revision": "v2",
    }
    assert Published.of(reference(ModelConfig(path="here"))).arguments == {"pretrained_model_name_or_path": "here"}


@pytest.mark.parametrize(
    ("tree", "fault"),
    [
        ({"target": {"model": {"path": "x", "revision": "v2"}}}, "revision must be null without hub, got v2 and path"),
        ({"sequence": {"tasks": [{"format": "jsonl", "path": "x", "revision": "v2"}]}}, "revision must be null for format 'jsonl', got v2"),
    ],
)
def test_a_revision_of_what_has_none_is_told(tree, fault):
    with pytest.raises(UserError, match=fault):
        validated({"name": "x", "sequence": {"tasks": "long"}, **tree}, "x")
    assert SourceConfig(format="huggingface", path="org/rows", revision="v2").revision == "v2"
