"""The plan of a run against what really happens: weights, optimizer and what autograd keeps, and the recipes on one node."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub.errors import RepositoryNotFoundError
from rich.console import Console
from tiny_checkpoints import ARCHITECTURES, make_checkpoint

from jobs.plan import plan
from proxymix.cases import proxy_builder
from proxymix.config import Config, load_config
from proxymix.data.encoding import IGNORED, Batch
from proxymix.errors import UserError
from proxymix.learners.large import LargeLearner
from proxymix.learners.models import TransformersModel
from proxymix.planning.geometry import architecture, shape_of
from proxymix.planning.gpus import gpu_needs
from proxymix.planning.memory import GIB, activation_bytes, proxy_memory, scoring_memory, tuning_memory
from proxymix.planning.reach import reachable
from proxymix.planning.work import Rates, hours_of, read_rates, total_hours, work_of

ROOT = Path(__file__).parents[1]
RECIPES = [f"llama3_8b_{name}" for name in ("s1", "s2", "s3", "s4", "s5", "trace", "order1", "order2", "order3")]


def config(folder, **target):
    tree = {
        "name": "t",
        "sequence": {"tasks": ["compare@heldout-0", "cipher@heldout-0"]},
        "target": {"model": {"path": folder, "implementation": "transformers"}, **target},
        "tuning": {"batch_size": 4, "max_length": 16, "stages_per_task": 3, "steps_per_stage": 5},
    }
    return Config.model_validate(tree)


LORA = {"lora": {"rank": 4}}


@pytest.mark.parametrize("target", [{}, LORA, {**LORA, "precision": "bf16"}], ids=["full", "lora", "lora-bf16"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_weights_gradients_and_optimizer_are_exact(tmp_path, name, target):
    settings = config(make_checkpoint(tmp_path, name), **target)
    shape = shape_of(architecture(settings, settings.target.model), lora=settings.target.lora, precision=settings.target.precision)
    model = TransformersModel(str(tmp_path), settings.target.lora, settings.target.precision)
    parameters = list(model.parameters())
    assert shape.num_parameters == sum(parameter.numel() for parameter in parameters)
    learner = LargeLearner(model, settings.tuning, settings.target)
    memory = tuning_memory(settings, shape)
    assert memory.weights == sum(parameter.nbytes for parameter in parameters)
    assert memory.gradients == sum(parameter.nbytes for parameter in learner.parameters.values())
    assert memory.optimizer == sum(value.nbytes for state in learner.optimizer.state.values() for value in state.values())


def kept_bytes(model, batch, learner):
    """What autograd keeps of one pass for the one after, parameters aside: every storage once."""
    storages, weights = {}, {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def note(tensor):
        if (pointer := tensor.untyped_storage().data_ptr()) not in weights:
            storages[pointer] = (tensor.untyped_storage().nbytes(), tensor)  # Held, or its place would be used again.
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        learner.train_steps([batch])
    return sum(size for size, _ in storages.values())


@pytest.mark.parametrize("target", [{}, LORA, {**LORA, "gradient_checkpointing": True}], ids=["full", "lora", "checkpointed"])
@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_activations_are_bounded_and_not_wildly(tmp_path, name, target):
    settings = config(make_checkpoint(tmp_path, name, hidden_size=64, intermediate_size=160, num_hidden_layers=4), **target)
    shape = shape_of(architecture(settings, settings.target.model), lora=settings.target.lora)
    model = TransformersModel(str(tmp_path), settings.target.lora)
    learner = LargeLearner(model, settings.tuning, settings.target)
    ids = torch.arange(4 * 16).reshape(4, 16) % 200
    labels = ids.clone()
    labels[:, :1] = IGNORED
    learner.begin_task(2)
    kept = kept_bytes(model, Batch(ids, labels), learner)
    bound = activation_bytes(settings.target, shape, 4, 16, adapters=settings.target.lora is not None)
    assert kept <= bound < 8 * kept


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_fit_one_node_of_eight_gpus_of_80_gb(name):
    settings = load_config(ROOT / "configs" / f"{name}.yaml")
    geometry = architecture(settings, settings.target.model)
    shape = shape_of(geometry, lora=settings.target.lora, precision=settings.target.precision)
    assert shape.num_parameters - shape.num_tuned == 8_030_261_248  # As its authors count it.
    assert shape.num_tuned == 32 * 64 * ((4096 + 4096) + (4096 + 1024))  # r=64 on q and v.
    assert shape_of(architecture(settings, settings.proxy.model)).num_parameters == 405_334_016
    assert tuning_memory(settings, shape).total < 79 * GIB
    assert scoring_memory(settings, shape_of(geometry), 79 * GIB).rows_at_once > 100
    assert gpu_needs(settings).total == 8
    proxy = proxy_memory(settings, shape_of(architecture(settings, settings.proxy.model)))
    assert 2 * proxy.total < 79 * GIB
    parts = settings.model_copy(update={"evaluation": settings.evaluation.model_copy(update={"tensor_parallel": 2})})
    whole, half = (scoring_memory(one, shape_of(geometry), 79 * GIB) for one in (settings, parts))
    assert (half.weights, half.cache_per_row) == (whole.weights / 2, whole.cache_per_row / 2)
    assert half.rows_at_once > 2 * whole.rows_at_once


def test_the_command_says_what_fits_offline_and_with_rates(tmp_path):
    rates = {"measured_by": "a test", "target_tokens_per_s": 1e4, "proxy_tokens_per_s": 1e4, "generated_tokens_per_s": 1e4, "dollars_per_gpu_hour": 2}
    (tmp_path / "rates.yaml").write_text(yaml.safe_dump(rates))
    command = [sys.executable, "-m", "jobs.plan", "--config", "configs/llama3_8b_s1.yaml", "--rates", str(tmp_path / "rates.yaml")]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env={"PATH": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stderr
    assert "fits 8 × 80 GB GPU of 79 GiB (8 needed)" in result.stdout
    assert "GPUs: 4 score all along, beside them 4 learn and then 4 tune; 2 proxies' processes on each that learns" in result.stdout
    assert "a test" in result.stdout
    assert "$ " in result.stdout
    assert "not measured" not in result.stdout


def say(settings, **changes):
    out = Console(file=io.StringIO(), width=160)
    settings_of = {"gpus": 8, "memory_gib": 79.0, "gpu_name": "GPU", "rates": Rates(), "require_data": False, "out": out}
    plan(settings, **settings_of | changes)
    return out.file.getvalue()


def test_what_does_not_fit_is_a_mistake(monkeypatch):
    monkeypatch.setattr("jobs.plan.reachable", lambda config: [])
    settings = load_config(ROOT / "configs" / "llama3_8b_s1.yaml")
    with pytest.raises(UserError, match=r"needs 8 GPUs .*there are 4"):
        say(settings, gpus=4)
    with pytest.raises(UserError, match=r"a worker needs 22\.\d GiB, a GPU has 16; try"):
        say(settings, memory_gib=16)
    full = load_config(ROOT / "configs" / "llama3_8b_s1.yaml", ["target.lora=null"])
    with pytest.raises(UserError, match=r"a worker needs 1[0-9]{2}"):  # 8 B weights, gradients and two moments in fp32: 120 GiB and more.
        say(full)
    with pytest.raises(UserError, match=r"needs 12 GPUs \(4 workers and 4 evaluation actors of 2\), there are 8"):
        say(load_config(ROOT / "configs" / "llama3_8b_s1.yaml", ["evaluation.tensor_parallel=2"]))
    spread = ["target.lora=null", "target.parallelism.strategy=fsdp", "target.parallelism.num_workers=8", "evaluation.actors=1"]
    assert "fits 9" in say(load_config(ROOT / "configs" / "llama3_8b_s1.yaml", spread), gpus=9)


def test_proxies_that_do_not_fit_are_a_mistake(monkeypatch):
    monkeypatch.setattr("jobs.plan.reachable", lambda config: [])
    whole = ["proxy.micro_batch_size=null", "proxy.pack_tokens=null", "proxy.precision=fp32"]  # As transformers would do it.
    with pytest.raises(UserError, match=r"2 processes of proxies need \d{3}\.\d GiB each, a GPU has 79; try a larger proxy.gpus_per_runner"):
        say(load_config(ROOT / "configs" / "llama3_8b_s1.yaml", whole))
    with pytest.raises(UserError, match=r"needs 12 GPUs \(8 of proxies and 4 evaluation actors\), there are 8"):
        say(load_config(ROOT / "configs" / "llama3_8b_s1.yaml", ["proxy.gpus_per_runner=1"]))


@pytest.mark.parametrize("implementation", ["lean", "transformers"])
def test_a_proxys_weights_gradients_and_optimizer_are_exact(smoke_config, base_folder, implementation):
    model = smoke_config.proxy.model.model_copy(update={"preset": None, "path": base_folder, "implementation": implementation})
    settings = smoke_config.model_copy(update={"proxy": smoke_config.proxy.model_copy(update={"model": model})})
    shape = shape_of(architecture(settings, model))
    memory, learner = proxy_memory(settings, shape), proxy_builder(settings, base_folder, settings.group_size).learner
    state = {name: tensor for name, tensor in learner.state_dict().items() if name != "progress"}
    moments = sum(tensor.nbytes for name, tensor in state.items() if name.startswith("optimizer."))
    weights = sum(tensor.nbytes for name, tensor in state.items() if not name.startswith("optimizer."))
    assert memory.optimizer == moments
    assert memory.weights == weights + (learner.base.nbytes if implementation == "lean" else 0)
    assert memory.gradients == weights * (2 if implementation == "lean" else 1)


def test_parts_of_all_workers_are_the_whole():
    settings = load_config(ROOT / "configs" / "llama3_8b_s1.yaml", ["target.parallelism.strategy=fsdp"])
    shape = shape_of(architecture(settings, settings.target.model), lora=settings.target.lora, precision=settings.target.precision)
    memory = tuning_memory(settings, shape)
    assert 0 <= 4 * memory.weights - shape.weight_bytes < 4
    assert 0 <= 4 * memory.gradients - shape.tuned_bytes < 4
    layer = 2 * (2 * 4096 * (4096 + 1024) + 3 * 4096 * 14336 + 2 * 4096) + 4 * 64 * (2 * 4096 + 4096 + 1024)  # bf16; adapters in fp32.
    assert shape.layer_bytes == layer


def test_unmeasured_hours_are_unknown_and_never_zero(tmp_path):
    settings = config(str(tmp_path))
    work = work_of(settings)
    assert (work.num_runs, work.stages_per_run, work.num_stages, work.steps_per_run) == (5, 6, 30, 30)
    assert total_hours(hours_of(settings, work, Rates(target_tokens_per_s=1.0))) is None
    every = Rates(target_tokens_per_s=10.0, proxy_tokens_per_s=10.0, generated_tokens_per_s=1e9)
    hours = hours_of(settings, work, every)
    assert hours["tuning"] == pytest.approx(5 * 30 * 4 * 16 * 13 / 12 / 10 / 3600, rel=1e-3)
    assert total_hours(hours) == pytest.approx(sum(hours.values()) - hours["scoring (beside tuning)"])
    given = settings.model_copy(update={"controller": settings.controller.model_copy(update={"path": "shipped"})})
    assert work_of(given).num_episodes == 0
    with pytest.raises(UserError, match="--rates"):
        read_rates(tmp_path / "absent.yaml")
    (tmp_path / "bad.yaml").write_text("target_tokens_per_s: 0")
    with pytest.raises(UserError, match="--rates"):
        read_rates(tmp_path / "bad.yaml")


def test_a_model_that_is_not_here_needs_its_geometry():
    settings = load_config(ROOT / "configs" / "llama3_8b_s1.yaml")
    unknown = settings.target.model.model_copy(update={"geometry": None, "path": "nowhere", "hub": None})
    with pytest.raises(UserError, match=r"the shape of 'nowhere' is not known here .*give model.geometry"):
        architecture(settings, unknown)
    with pytest.raises(UserError, match=r"model.geometry: must be what a config.json"):
        architecture(settings, unknown.model_copy(update={"geometry": {"model_type": "no such"}}))


def test_data_are_looked_for_and_a_silent_hub_is_asked_once(tmp_path):
    settings = load_config(ROOT / "configs" / "llama3_8b_s4.yaml", [f"data_root={tmp_path}"])
    asked = []

    def silent(name):
        asked.append(name)
        raise ConnectionError

    states = {found.name: found.state for found in reachable(settings, silent, silent)}
    assert asked == ["EleutherAI/pythia-410m"]
    assert (states["qa"], states["target"], states["safety"]) == ("unknown", "unknown", "missing")

    def answering(name):
        if name == "rajpurkar/squad":
            raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    (tmp_path / "xstest").mkdir()
    (tmp_path / "xstest" / "xstest_prompts.csv").touch()
    states = {found.name: found.state for found in reachable(settings, answering, answering)}
    assert (states["qa"], states["target"], states["math"], states["safety"]) == ("missing", "on the hub", "on the hub", "here")


def test_data_that_must_be_there_are_a_mistake(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    settings = load_config(ROOT / "configs" / "llama3_8b_order1.yaml", [f"data_root={tmp_path}"])
    assert "missing" in say(settings)
    with pytest.raises(UserError, match=r"plan: data: .*dbpedia"):
        say(settings, require_data=True)
