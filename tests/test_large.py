"""A large model's step is the small one's, however it is cut up: portions, packs, recomputation, adapters, mixed precision.

Over several workers: `test_parallel.py`.
"""

import math
import weakref

import pytest
import torch
from tiny_checkpoints import ARCHITECTURES, make_checkpoint

from proxymix.config import LoraConfig, TuningConfig, validated
from proxymix.continual import ContinualRun, run_continual
from proxymix.controllers.baselines import UniformReplay
from proxymix.data.chat import as_chat
from proxymix.data.encoding import EncodedSource, EncodedSplit, encode_split
from proxymix.data.portions import row_lengths
from proxymix.errors import NonFiniteLossError, UserError
from proxymix.learners.adapters import merged_state
from proxymix.learners.large import LargeLearner
from proxymix.learners.learner import Learner
from proxymix.learners.models import TransformersModel, load_model, load_tokenizer
from proxymix.tuning_config import TargetConfig
from proxymix.types import Example

TUNING = TuningConfig(
    learning_rate=3e-3, warmup_fraction=0.25, weight_decay=0.1, max_grad_norm=0.5, stages_per_task=2, steps_per_stage=2, batch_size=4
)
LORA = LoraConfig(rank=4, alpha=8)
WAYS = {
    "whole": {},
    "portions": {"micro_batch_size": 3},
    "packs": {"pack_tokens": 96},
    "all of it": {"micro_batch_size": 1, "pack_tokens": 96, "gradient_checkpointing": True},
}
STEPS = 4


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request, tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def split(llama):
    """Rows of 3 to some 60 tokens; every tokenizer here has at least as many."""
    rows = [Example("one " * (1 + 7 * index % 20), "two three" * (1 + index % 3)) for index in range(24)]
    return encode_split([as_chat(row) if index % 2 else row for index, row in enumerate(rows)], load_tokenizer(llama), 96)


@pytest.fixture(scope="module")
def batches(split):
    return [EncodedSplit(*(v[6 * n : 6 * n + 6] for v in (split.input_ids, split.labels, split.lengths))).batch() for n in range(STEPS)]


def new_learner(folder, lora=None, precision="fp32", tuning=TUNING, workers=None, **target):
    torch.manual_seed(0)
    settings = TargetConfig(precision=precision, **target)
    return LargeLearner(load_model(folder, "transformers", lora, precision), tuning, settings, workers, settings.parallelism.strategy)


def flat_learner(folder, lora=None):
    torch.manual_seed(0)
    return Learner(load_model(folder, "transformers", lora), TUNING)


def tuned(learner, batches):
    learner.begin_task(STEPS)
    return [learner.train_steps([batch])[0] for batch in batches]


def weights(learner):
    return torch.cat([parameter.detach().float().flatten() for parameter in learner.model.parameters() if parameter.requires_grad])


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_every_way_is_the_same_step(folder, batches, split, lora):
    plain = flat_learner(folder, lora)
    expected = tuned(plain, batches)
    assert abs(expected[-1] - expected[0]) > 1e-3
    for way in WAYS.values():
        learner = new_learner(folder, lora, **way)
        assert tuned(learner, batches) == pytest.approx(expected, abs=1e-4), way
        assert learner.losses_of_all({"x": split})[0] == pytest.approx(plain.losses({"x": split}), abs=2e-3), way


def test_readings_are_those_of_the_flat_learner(llama, split):
    probes = {"long": split, "short": EncodedSplit(split.input_ids[:3], split.labels[:3], split.lengths[:3])}
    plain = flat_learner(llama)
    for way in WAYS.values():
        learner = new_learner(llama, **way)
        learner.begin_task(60)
        plain.restore_base()
        plain.begin_task(60)
        assert learner.losses_of_all(probes)[0] == pytest.approx(plain.losses(probes), abs=1e-4)
        rights = learner.accuracies_of_all(probes)[0]
        assert {name: rows.tolist() for name, rows in rights.items()} == {name: rows.tolist() for name, rows in plain.accuracies(probes).items()}


@pytest.mark.parametrize(
    ("world_size", "way", "most"), [(1, {}, 4), (2, {}, 2), (2, {"pack_tokens": 96}, 2), (1, {"micro_batch_size": 3}, 3), (8, {}, 1)]
)
def test_reading_takes_no_more_lines_at_a_time_than_a_step(llama, split, monkeypatch, world_size, way, most):
    learner = new_learner(llama, **way)
    scores, lines = learner._scores, []
    monkeypatch.setattr(learner, "world_size", world_size)
    monkeypatch.setattr(learner, "_scores", lambda portion, network: lines.append(len(portion.input_ids)) or scores(portion, network))
    learner.losses_of_all({"x": split})
    assert max(lines) == most


def test_what_was_learnt_is_read_as_right(llama, batches):
    rows = EncodedSplit(batches[0].input_ids, batches[0].labels, torch.zeros(6))
    learner = new_learner(llama, pack_tokens=96, tuning=TUNING.model_copy(update={"learning_rate": 1e-2, "weight_decay": 0.0}))
    learner.begin_task(120)
    assert not learner.accuracies_of_all({"x": rows})[0]["x"].all()
    for _ in range(120):
        learner.train_steps([batches[0]])
    assert learner.accuracies_of_all({"x": rows})[0]["x"].all()


def test_adapters_are_carried_from_task_to_task(llama, batches):
    learner = new_learner(llama, LORA)
    frozen = {name: value.clone() for name, value in learner.model.state_dict().items() if "lora_" not in name}
    tuned(learner, batches)
    after = weights(learner)
    learner.begin_task(STEPS)
    assert torch.equal(weights(learner), after)
    assert not torch.equal(after, weights(new_learner(llama, LORA)))
    assert all(torch.equal(value, learner.model.state_dict()[name]) for name, value in frozen.items())
    learner.restore_base()
    assert torch.equal(weights(learner), weights(new_learner(llama, LORA)))


def test_adapters_are_merged_one_matrix_at_a_time(llama, batches):
    learner = new_learner(llama, LORA)
    tuned(learner, batches)
    causal, merged = learner.model.causal, []
    there = {id(value): value for value in causal.state_dict(keep_vars=True).values()}

    def copied(value):
        assert not any(before() is not None for before in merged)
        if id(value) not in there:
            merged.append(weakref.ref(value))
        return value.detach().clone()

    state = merged_state(causal, copied)
    assert len(merged) == 4  # Queries and values of two layers.
    expected = dict(load_model(llama, "transformers").causal.state_dict())
    assert state.keys() == expected.keys()
    for name, module in causal.named_modules():
        if name.endswith(("q_proj", "v_proj")):
            expected[f"{name}.weight"] += 2.0 * module.lora_B["default"].weight @ module.lora_A["default"].weight
    assert all(torch.allclose(state[name], value, atol=1e-7) for name, value in expected.items())


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_the_state_gives_a_bit_identical_continuation(llama, batches, lora):
    learner = new_learner(llama, lora, **WAYS["all of it"])
    learner.begin_task(STEPS)
    learner.train_steps([batches[0]])
    state = {name: value.clone() for name, value in learner.state_dict().items()}
    expected = [learner.train_steps([batch]) for batch in batches[1:]]
    other = new_learner(llama, lora, **WAYS["all of it"])
    other.load_state_dict(state)
    assert [other.train_steps([batch]) for batch in batches[1:]] == expected
    assert torch.equal(weights(other), weights(learner))


@pytest.mark.parametrize(("lora", "kept"), [(None, torch.float32), (LORA, torch.bfloat16)], ids=["full", "lora"])
def test_bf16_tunes_fp32_weights(llama, batches, tmp_path, lora, kept):
    learner = new_learner(llama, lora, "bf16", pack_tokens=96)
    assert {parameter.dtype for parameter in learner.parameters.values()} == {torch.float32}
    assert {p.dtype for p in learner.model.parameters() if not p.requires_grad} <= {kept}
    exact = tuned(new_learner(llama, lora), batches)
    losses = tuned(learner, batches)
    assert losses == pytest.approx(exact, abs=5e-2)
    assert losses != pytest.approx(exact, abs=1e-6)  # or it was not in bf16 at all
    learner.model.snapshot()(tmp_path)
    num_weights = sum(parameter.numel() for parameter in load_model(tmp_path, "transformers").parameters())
    assert (tmp_path / "model.safetensors").stat().st_size < 2.2 * num_weights  # Two bytes each.


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_row(llama, batches, monkeypatch):
    learner = new_learner(llama, micro_batch_size=2)
    tuned(learner, batches[:2])
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    monkeypatch.setattr(learner.model, "forward", poisoned(learner.model, batches[2].input_ids[4, : row_lengths(batches[2].labels)[4]]))
    with pytest.raises(NonFiniteLossError, match="loss became nan at optimizer step 2 of the task; the last stage boundary is kept") as caught:
        learner.train_steps([batches[2]])
    assert caught.value.row == 4
    assert all(torch.equal(before[name], value) for name, value in learner.state_dict().items())


def poisoned(model, bad):
    """A forward pass that fails for one row alone."""
    forward = type(model).forward

    def broken(input_ids, scored, positions=None):
        scores = forward(model, input_ids, scored, positions)
        wrong = torch.tensor([torch.equal(row[: len(bad)], bad) for row in input_ids])
        return torch.where(wrong[scored.nonzero()[:, 0]][:, None], math.nan, scores)

    return broken


def test_the_loop_says_where_it_happened(llama, split):
    parts = [EncodedSplit(*(v[s] for v in (split.input_ids, split.labels, split.lengths))) for s in (slice(0, 8), slice(8, 16), slice(16, 24))]
    anchor, *tasks = (EncodedSource(n, "exact_match", p, p, p, p, None) for n, p in zip(["safety", "code", "math"], parts, strict=True))
    learner = new_learner(llama)
    run = ContinualRun(tasks, [anchor], learner, TUNING, seed=0)
    for _ in range(3):
        run.advance(UniformReplay(0.5).decide(run.observe()))
    saved, learner.train_steps = learner.train_steps, lambda batches: fail(learner.steps_done)
    with pytest.raises(
        NonFiniteLossError, match=r"at optimizer step 2 of task 1 \(math\), stage 1, on rows of (safety|code|math); the last stage boundary is kept"
    ):
        run_continual(run, UniformReplay(0.5))
    learner.train_steps = saved
    assert run.task_index == run.stage_index == 1


def fail(step):
    raise NonFiniteLossError("loss became inf", step, row=0)


def test_a_model_that_mixes_packed_rows_is_refused(llama, monkeypatch):
    scores = TransformersModel._scores
    monkeypatch.setattr(TransformersModel, "_scores", lambda self, input_ids, chosen, positions=None: scores(self, input_ids, chosen))
    with pytest.raises(UserError, match=r"^pack_tokens: must be null for this model \(LlamaForCausalLM\), .* apart: scores differ by"):
        new_learner(llama, pack_tokens=96)


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ({"micro_batch_size": 2}, "target.micro_batch_size needs target.model.implementation: transformers, got lean"),
        (
            {"parallelism": {"strategy": "fsdp"}},
            "target.parallelism.strategy=fsdp needs target.model.implementation: transformers, got lean",
        ),
        (
            {"pack_tokens": 63, "model": {"path": "x", "implementation": "transformers"}},
            "target.pack_tokens must be at least tuning.max_length, got 63",
        ),
    ],
)
def test_settings_that_do_not_fit_together_are_told(target, complaint):
    with pytest.raises(UserError, match=complaint):
        validated({"name": "x", "sequence": {"tasks": "long"}, "target": target}, "x")
