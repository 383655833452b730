"""What makes a run impossible is told before its engines and workers are started, and by the plan."""

import io
import warnings

import pytest
from rich.console import Console
from tiny_checkpoints import make_checkpoint

from jobs.plan import plan
from jobs.run import Run
from proxymix.config import validated
from proxymix.errors import UserError
from proxymix.planning.checks import check_models
from proxymix.planning.work import Rates

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from jobs.tune_target import tuned_targets


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("llama"), "llama")


def config(folder, runs=None, **changes):
    target = {"model": {"path": folder, "implementation": "transformers"}, **changes.pop("target", {})}
    tree = {"name": "x", "sequence": {"tasks": "long"}, "methods": ["no_replay"], "target": target, **changes}
    return validated(tree | ({"runs_root": str(runs)} if runs else {}), "x")


WRONG = [
    ({"tuning": {"max_length": 129}}, r"^tuning.max_length: must be at most the 128 tokens of the model's window \(.*\), got 129; lower it$"),
    ({"target": {"lora": {"rank": 2, "modules": ["nowhere"]}}}, r"^target.lora.modules: must name modules of the model, got \['nowhere'\]"),
    (
        {"target": {"checkpoints": {"storage": "nosuch://bucket"}}},
        r"^target.checkpoints.storage: must be .* fsspec knows here, got 'nosuch://bucket'",
    ),
    (
        {"methods": ["proxymix"], "tuning": {"max_length": 65}, "proxy": {"model": {"path": "{small}", "implementation": "transformers"}}},
        r"^tuning.max_length: must be at most the 64 tokens",
    ),
]


@pytest.mark.parametrize(("changes", "fault"), WRONG)
def test_nothing_starts_with_a_model_that_cannot_be_tuned(folder, tmp_path, changes, fault):
    if "proxy" in changes:
        small = make_checkpoint(tmp_path / "small", "gpt_neox", max_position_embeddings=64)
        changes = changes | {"proxy": {"model": {**changes["proxy"]["model"], "path": small}}}
    settings = config(folder, tmp_path / "runs", **changes)
    # No Ray is connected here: whatever starts before the check would fail otherwise.
    with pytest.raises(UserError, match=fault), tuned_targets(Run.open(settings, "tune_target"), []):
        pass
    assert not (tmp_path / "runs").exists()
    if "checkpoints" in changes.get("target", {}):
        return  # The plan may be made elsewhere.
    with pytest.raises(UserError, match=fault):
        plan(settings, gpus=1, memory_gib=1.0, gpu_name="g", rates=Rates(), require_data=False, out=Console(file=io.StringIO()))


def test_models_that_are_as_they_should_be_pass(folder):
    check_models(config(folder, tuning={"max_length": 128}, target={"lora": {"rank": 2, "modules": "qkvo"}}))
    check_models(validated({"name": "x", "sequence": {"tasks": "long"}, "tuning": {"max_length": 4096}}, "x"))  # A preset is made to measure.


def test_a_model_that_is_not_there_is_told(tmp_path):
    with pytest.raises(UserError, match=r"^model: transformers cannot load the configuration of the model '.*nowhere'"):
        check_models(config(str(tmp_path / "nowhere")))
