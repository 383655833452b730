"""Four real processes over gloo: however a model is spread over workers, its losses, readings, weights and saved model are those of one."""

import json
from dataclasses import asdict

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from test_large import LORA, TUNING, WAYS, new_learner
from tiny_checkpoints import make_checkpoint
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from proxymix.continual import ContinualRun, run_continual
from proxymix.controllers.baselines import UniformReplay
from proxymix.data.chat import as_chat
from proxymix.data.encoding import IGNORED, EncodedSource, EncodedSplit, encode_split
from proxymix.evaluation.generation import TransformersGenerator
from proxymix.evaluation.verification import TOLERANCE, Fingerprint
from proxymix.learners.models import load_model, load_tokenizer
from proxymix.learners.parallel import whole
from proxymix.types import Example

NUM_PROCESSES = 4
CASES = {
    "ddp-2": ("llama", 2, "ddp", None, "fp32", "portions"),
    "ddp-4-lora": ("llama", 4, "ddp", LORA, "fp32", "all of it"),
    "fsdp-2": ("llama", 2, "fsdp", None, "fp32", "all of it"),
    "fsdp-4": ("qwen2", 4, "fsdp", None, "fp32", "portions"),  # Its output layer is its embedding.
    "fsdp-4-lora": ("gpt_neox", 4, "fsdp", LORA, "fp32", "packs"),
    "fsdp-2-adapters": ("llama", 2, "fsdp", LORA.model_copy(update={"merged": False}), "fp32", "portions"),  # Kept without the base.
    "fsdp-2-lora-bf16": ("llama", 2, "fsdp", LORA, "bf16", "all of it"),  # Frozen weights are of another type than adapters.
}


def sources(folder):
    rows = [Example("one " * (1 + 7 * index % 20), "two three" * (1 + index % 3)) for index in range(24)]
    split = encode_split([as_chat(row) if index % 2 else row for index, row in enumerate(rows)], load_tokenizer(folder, "plain"), 96)
    parts = [EncodedSplit(*(v[s] for v in (split.input_ids, split.labels, split.lengths))) for s in (slice(0, 8), slice(8, 16), slice(16, 24))]
    return [EncodedSource(n, "exact_match", p, p, p, p, None) for n, p in zip(["safety", "code", "math"], parts, strict=True)]


def learner_of(root, case, workers=None):
    architecture, _, strategy, lora, precision, way = CASES[case]
    parallelism = {"strategy": strategy, "num_workers": 1 if workers is None else workers.size()}
    return new_learner(root / architecture, lora, precision, workers=workers, parallelism=parallelism, **WAYS[way])


def watched(learner):
    """From now on, of every optimizer step: the rows of the global batch that this worker shows the model, by their place in it."""
    steps, train_steps, scores = [], learner.train_steps, learner._scores

    def step(batches):
        steps.append({})
        learner._scores = show
        try:
            return train_steps(batches)
        finally:
            learner._scores = scores

    def show(portion, *rest):
        for tokens, labels, rows in zip(portion.input_ids, portion.labels, portion.rows, strict=True):
            ends = {row: place + 1 for place, row in enumerate(rows.tolist()) if labels[place] != IGNORED}  # A row ends with its answer.
            for row, end in ends.items():
                assert row not in steps[-1]
                steps[-1][row] = tokens[:end][rows[:end] == row].tolist()
        return scores(portion, *rest)

    learner.train_steps = step
    return steps


def outcome(learner, root, case):
    """A run of two tasks, then its state: all that must not depend on the workers."""
    shown = watched(learner)
    anchor, *tasks = sources(root / CASES[case][0])
    run = ContinualRun(tasks, [anchor], learner, TUNING, seed=0)
    records = run_continual(run, UniformReplay(0.5))
    learner.begin_task(8)
    learner.train_steps([tasks[0].train.batch()])
    return {
        "shown": shown,
        "counts": [dict(record.counts) for record in records],
        "losses": [record.training_loss for record in records],
        "read": {name: list(values) for name, values in run.readings.histories.items()},
        "state": {name: whole(value).clone() for name, value in learner.state_dict().items()},
    }


def one_process(rank, root):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root / 'store'}", rank=rank, world_size=NUM_PROCESSES)
    meshes = {size: DeviceMesh("cpu", list(range(size))) for size in (2, 4)}  # Every process must make every group.
    for case, (_, size, *_) in CASES.items():
        if rank < size:
            learner = learner_of(root, case, meshes[size])
            spread = [type(parameter) is DTensor for parameter in learner.parameters.values()]
            found = outcome(learner, root, case)
            write = learner.model.snapshot(keep=rank == 0)
            if rank == 0:
                (root / case).mkdir()
                write(root / case)
            local = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in learner.model.parameters())
            again = {name: value.clone() for name, value in found["state"].items()}
            learner.restore_base()
            learner.load_state_dict(again)
            back = all(torch.equal(whole(value), found["state"][name]) for name, value in learner.state_dict().items())
            fingerprint = asdict(Fingerprint.of(learner, [source.probe for source in sources(root / CASES[case][0])]))
            torch.save({**found, "fingerprint": fingerprint, "spread": spread, "local": local, "back": back}, root / f"{case}.{rank}.pt")
    (root / f"{rank}.json").write_text(json.dumps("over"))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("parallel")
    for architecture in {case[0] for case in CASES.values()}:
        make_checkpoint(root / architecture, architecture)
    torch.multiprocessing.start_processes(one_process, args=(root,), nprocs=NUM_PROCESSES, start_method="spawn")
    return root


@pytest.mark.parametrize("case", CASES)
def test_workers_together_are_one(root, case):
    _, size, strategy, _, precision, _ = CASES[case]
    results = [torch.load(root / f"{case}.{rank}.pt", weights_only=True) for rank in range(size)]
    alone = learner_of(root, case)
    expected = outcome(alone, root, case)
    close = 1e-4 if precision == "fp32" else 2e-2
    for result in results:
        assert result["counts"] == expected["counts"]
        assert result["losses"] == pytest.approx(expected["losses"], abs=close)
        assert all(result["read"][name] == pytest.approx(values, abs=10 * close) for name, values in expected["read"].items())
        assert all(torch.equal(value, results[0]["state"][name]) for name, value in result["state"].items())
        assert result["back"]
        assert result["fingerprint"] == results[0]["fingerprint"]
        assert all(result["spread"]) == any(result["spread"]) == (strategy == "fsdp")
    num_weights = sum(parameter.numel() for parameter in alone.model.parameters())
    assert sum(result["local"] for result in results) == num_weights * (1 if strategy == "fsdp" else size)


@pytest.mark.parametrize("case", CASES)
def test_the_stream_is_the_same_for_any_number_of_workers(root, case):
    """Workers plan for themselves; what all of them show the model in a step is what one would, each row once."""
    shares = [torch.load(root / f"{case}.{rank}.pt", weights_only=True)["shown"] for rank in range(CASES[case][1])]
    whole_batches = [{row: tokens for share in step for row, tokens in share.items()} for step in zip(*shares, strict=True)]
    assert [sum(map(len, step)) for step in zip(*shares, strict=True)] == [TUNING.batch_size] * 8 + [8]
    if "pack_tokens" not in WAYS[CASES[case][5]]:  # A pack may hold all rows there are.
        assert len({len(step) for share in shares for step in share[:8]}) == 1
    assert whole_batches == outcome(learner_of(root, case), root, case)["shown"]


@pytest.mark.parametrize("case", CASES)
def test_what_several_workers_save_is_the_model(root, case):
    saved = load_model(root / case, "transformers")
    alone = learner_of(root, case)
    alone.load_state_dict(torch.load(root / f"{case}.0.pt", weights_only=True)["state"])  # Elastic: of several, gone on with by one.
    (root / f"{case}.alone").mkdir()
    alone.model.snapshot()(root / f"{case}.alone")
    expected = dict(load_model(root / f"{case}.alone", "transformers").named_parameters())
    assert len(expected) == len(dict(saved.named_parameters()))
    for name, value in saved.named_parameters():
        assert torch.allclose(value, expected[name], atol=1e-6 if CASES[case][4] == "fp32" else 1e-2), name
    generator = object.__new__(TransformersGenerator)
    generator.model, generator.device = saved.model.eval(), torch.device("cpu")
    fingerprint = Fingerprint(**torch.load(root / f"{case}.0.pt", weights_only=True)["fingerprint"])
    assert fingerprint.difference(generator) < TOLERANCE[CASES[case][4]] / 10


def test_adapters_that_several_workers_save_are_those_of_one(root):
    """Both of a run from its beginning; the files hold adapters alone, whole ones."""
    case, alone = "fsdp-2-adapters", root / "adapters-of-one"
    learner = learner_of(root, case)
    outcome(learner, root, case)
    alone.mkdir()
    learner.model.snapshot()(alone)
    assert sorted(path.name for path in (root / case).iterdir()) == sorted(path.name for path in alone.iterdir())
    settings = [json.loads((folder / "adapter_config.json").read_text()) for folder in (root / case, alone)]
    for told in settings:
        told["target_modules"].sort()  # peft keeps a set.
    assert settings[0] == settings[1]
    found, expected = (load_file(folder / "adapter_model.safetensors") for folder in (root / case, alone))
    assert found.keys() == expected.keys()
    assert sum(value.numel() for value in found.values()) == sum(parameter.numel() for parameter in learner.parameters.values())
    for name, value in found.items():
        assert torch.allclose(value, expected[name], atol=1e-5), name
        assert value.abs().max() > 1e-3, name  # Adapters that were not tuned are 0 in one of their two matrices.
