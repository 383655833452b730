"""O-LoRA: earlier adapters stay, new ones turn away from them; a run resumes to the bit."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from proxymix.cases import CaseBuilder
from proxymix.config import LoraConfig, TuningConfig
from proxymix.continual import run_continual
from proxymix.controllers.baselines import baseline
from proxymix.data.encoding import gather
from proxymix.errors import UserError
from proxymix.learners.learner import Learner
from proxymix.learners.models import load_model
from proxymix.learners.orthogonal import OrthogonalLearner

TUNING = TuningConfig(learning_rate=1e-2, batch_size=8)
LORA = LoraConfig(rank=2, alpha=4.0, modules=["q_proj", "down_proj"])
STEPS = 4


@pytest.fixture(scope="module")
def source(smoke_builder, smoke_case):
    return smoke_builder.source(smoke_case.tasks[0])


@pytest.fixture(scope="module")
def batches(source):
    return [gather([source.train], [(0, (8 * step + row) % len(source.train)) for row in range(8)]) for step in range(STEPS)]


def new_learner(base_folder, lora=LORA, **settings):
    torch.manual_seed(0)
    return OrthogonalLearner(load_model(base_folder, "transformers", lora), TUNING, **settings)


def tuned(learner, batches):
    learner.begin_task(len(batches))
    return [learner.train_step(batch) for batch in batches]


def adapters(learner):
    return [(layer.lora_A["default"].weight, layer.lora_B["default"].weight) for layer in learner.layers]


@torch.no_grad()
def objective(learner):
    return float(learner.objective(torch.tensor([1.5])))


@torch.no_grad()
def overlap(learner):
    earlier = [a for task in learner.frozen for a, _ in task]
    return sum(float((a @ b.T).square().sum()) for a, (b, _) in zip(earlier, adapters(learner) * len(learner.frozen), strict=True))


def test_the_first_task_is_tuned_as_by_any_learner(base_folder, batches):
    torch.manual_seed(0)
    plain = Learner(load_model(base_folder, "transformers", LORA), TUNING)
    assert tuned(new_learner(base_folder), batches) == tuned(plain, batches)


def test_freezing_an_adapter_changes_nothing_but_what_is_tuned(base_folder, batches, source):
    learner = new_learner(base_folder)
    tuned(learner, batches)
    before, trained = learner.losses({"x": source.probe})["x"], [a.detach().clone() for a, _ in adapters(learner)]
    learner.begin_task(STEPS)
    assert learner.losses({"x": source.probe})["x"] == pytest.approx(before, abs=1e-5)
    assert all(torch.equal(frozen, a) for (frozen, _), a in zip(learner.frozen[0], trained, strict=True))
    assert all(not b.any() and not torch.equal(a, old) for (a, b), old in zip(adapters(learner), trained, strict=True))


def test_the_penalty_by_hand(base_folder, batches):
    learner = new_learner(base_folder, penalty=0.7)
    assert objective(learner) == 1.5
    for _ in range(2):
        tuned(learner, batches)
    learner.begin_task(STEPS)
    assert len(learner.frozen) == 2
    assert objective(learner) == pytest.approx(1.5 + 0.7 * overlap(learner), rel=1e-5)
    learner.world_size = 2  # Each of two ranks adds half, since gradients are summed.
    assert objective(learner) == pytest.approx(1.5 + 0.35 * overlap(learner), rel=1e-5)


def test_a_penalty_turns_new_adapters_away_from_old_ones(base_folder, batches):
    overlaps = []
    for penalty in (0.0, 10.0):
        learner = new_learner(base_folder, penalty=penalty)
        tuned(learner, batches)
        tuned(learner, batches * 4)
        overlaps.append(overlap(learner))
    assert overlaps[1] < 0.5 * overlaps[0]


def test_a_resumed_run_goes_on_to_the_bit(base_folder, batches):
    learner = new_learner(base_folder)
    tuned(learner, batches)
    learner.begin_task(STEPS)
    learner.train_step(batches[0])
    state = {name: value.clone() for name, value in learner.state_dict().items()}
    expected = [learner.train_step(batch) for batch in batches[1:]]
    learner.begin_task(STEPS)
    expected.append(learner.train_step(batches[0]))
    torch.manual_seed(9)
    other = new_learner(base_folder)
    tuned(other, batches)
    tuned(other, batches)
    other.load_state_dict(state)
    assert len(other.frozen) == 1
    found = [other.train_step(batch) for batch in batches[1:]]
    other.begin_task(STEPS)
    assert [*found, other.train_step(batches[0])] == expected


def test_restore_base_forgets_every_task(base_folder, batches):
    learner = new_learner(base_folder)
    expected = [tuned(learner, batches) for _ in range(2)]
    learner.restore_base()
    assert learner.frozen == []
    assert [tuned(learner, batches) for _ in range(2)] == expected


def test_a_whole_run_freezes_an_adapter_a_task(smoke_config, base_folder, smoke_case):
    learner = new_learner(base_folder)
    builder = CaseBuilder(smoke_config, str(base_folder), learner)
    scores = []
    for _ in range(2):
        run = builder.build(smoke_case)
        run_continual(run, baseline("no_replay"))
        assert len(learner.frozen) == len(run.tasks) - 1
        scores.append(run.observe())
    assert scores[0] == scores[1]


def test_a_saved_model_holds_every_adapter(base_folder, batches, source, tmp_path):
    learner = new_learner(base_folder)
    for _ in range(2):
        tuned(learner, batches)
    learner.model.snapshot()(tmp_path)
    saved = Learner(load_model(tmp_path, "transformers"), TUNING)
    assert saved.losses({"x": source.probe})["x"] == pytest.approx(learner.losses({"x": source.probe})["x"], abs=1e-5)


@pytest.mark.parametrize("implementation", ["lean", "transformers"])
def test_models_without_adapters_are_refused(base_folder, implementation):
    with pytest.raises(UserError, match=r"target\.lora: o_lora needs adapters of linear layers, got no adapters"):
        OrthogonalLearner(load_model(base_folder, implementation), TUNING)


def test_adapted_lookup_tables_are_refused(tmp_path):
    sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=False)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"linear layers, got \['Embedding'\]"):
        new_learner(tmp_path, LoraConfig(rank=2, modules=["embed_tokens"]))
