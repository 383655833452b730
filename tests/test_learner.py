import math
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.optim.adamw import adamw
from transformers import AutoModelForCausalLM

from proxymix.config import LoraConfig, TuningConfig
from proxymix.data.encoding import IGNORED, Batch, EncodedSplit, gather, side_by_side
from proxymix.learners.decoder import LeanLlama
from proxymix.learners.learner import Learner, NonFiniteLossError
from proxymix.learners.models import load_model, load_tokenizer, save_model
from proxymix.learners.pretraining import llama_config

TUNING = TuningConfig(learning_rate=3e-3, warmup_fraction=0.25, weight_decay=0.1, max_grad_norm=0.5)
STEPS = 8


@pytest.fixture(scope="module")
def source(smoke_builder, smoke_case):
    return smoke_builder.source(smoke_case.tasks[0])


@pytest.fixture(scope="module")
def batches(source):
    return [gather([source.train], [(0, (7 * step + row) % len(source.train)) for row in range(8)]) for step in range(STEPS)]


@pytest.fixture
def learner(base_folder):
    return new_learner(base_folder)


def new_learner(base_folder, implementation="lean", tuning=TUNING, **ranks):
    return Learner(load_model(base_folder, implementation), tuning, **ranks)


def tuned(learner, batches, num_steps=STEPS):
    learner.begin_task(num_steps)
    return [learner.train_step(batch) for batch in batches]


def rate(step, num_steps=STEPS):
    """Linear over the first quarter, then cosine to a tenth."""
    warmup = TUNING.warmup_fraction * num_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (num_steps - warmup)))


def everywhere(tokens):
    return torch.arange(tokens.shape[-1]).expand_as(tokens)


def plain_losses(base_folder, batches):
    """The textbook loop: transformers, AdamW, LambdaLR, clip_grad_norm_."""
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=TUNING.learning_rate, weight_decay=TUNING.weight_decay)
    schedule, losses = torch.optim.lr_scheduler.LambdaLR(optimizer, rate), []
    for batch in batches:
        loss = F.cross_entropy(model(batch.input_ids).logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), TUNING.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module", params=["nano", "micro"])
def folder(request, base_folder, tmp_path_factory):
    """A base of either size; the larger has fresh weights."""
    if request.param == "nano":
        return base_folder
    folder, tokenizer = tmp_path_factory.mktemp("micro"), load_tokenizer(base_folder)
    network = LeanLlama(llama_config("micro", tokenizer, 64))
    network.initialise(torch.Generator().manual_seed(0))
    save_model(network, base_folder, folder)
    return str(folder)


def plain_loss(folder, probe):
    """Mean loss on all answer tokens of `probe`, read by transformers in one piece."""
    with torch.no_grad():
        scores = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(probe.input_ids).logits
    return F.cross_entropy(scores.flatten(0, 1), probe.labels.flatten(), ignore_index=IGNORED).item()


@pytest.mark.parametrize("implementation", ["lean", "transformers"])
def test_a_stage_equals_the_textbook_loop(folder, source, batches, tmp_path, implementation):
    expected = plain_losses(folder, batches)
    assert expected[-1] < expected[0]
    learner, probes = new_learner(folder, implementation), {"probe": source.probe, "validation": source.validation, "buffer": source.buffer}
    assert tuned(learner, batches) == pytest.approx(expected, abs=1e-5)
    save_model(learner.model, folder, tmp_path)
    assert learner.losses(probes) == pytest.approx({name: plain_loss(tmp_path, probe) for name, probe in probes.items()}, abs=1e-5)


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_are_one(base_folder, batches, world_size):
    alone = new_learner(base_folder)
    expected = tuned(alone, batches)
    barrier, parts = threading.Barrier(world_size, timeout=30), {}

    def rank_of(rank):
        def reduce(tensor):
            parts[rank] = tensor.clone()
            barrier.wait()
            total = sum(parts[r] for r in range(world_size))
            barrier.wait()
            tensor.copy_(total)

        learner = new_learner(base_folder, rank=rank, world_size=world_size, reduce=reduce)
        return learner, tuned(learner, batches)

    with ThreadPoolExecutor(world_size) as pool:
        results = list(pool.map(rank_of, range(world_size)))
    for learner, losses in results:
        assert losses == pytest.approx(expected, abs=1e-5)
        assert torch.equal(learner.flat, results[0][0].flat)
        assert torch.allclose(learner.flat, alone.flat, atol=1e-4)


def test_a_loss_that_is_not_finite_is_raised_before_any_weight_changes(learner, batches, monkeypatch):
    tuned(learner, batches[:3], STEPS)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    logits = learner.model.logits
    monkeypatch.setattr(learner.model, "logits", lambda *asked: logits(*asked) * math.nan)
    with pytest.raises(NonFiniteLossError, match="at optimizer step 3"):
        learner.train_step(batches[3])
    after = learner.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("implementation", ["lean", "transformers"])
def test_a_gradient_that_is_not_finite_is_raised_before_any_weight_changes(base_folder, batches, monkeypatch, implementation):
    learner = new_learner(base_folder, implementation)
    tuned(learner, batches[:3], STEPS)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    gradient = learner._gradient
    monkeypatch.setattr(learner, "_gradient", lambda objective: gradient(objective) * math.inf)
    with pytest.raises(NonFiniteLossError, match=r"^gradient norm became (nan|inf) at optimizer step 3"):
        learner.train_step(batches[3])
    assert all(torch.equal(before[name], value) for name, value in learner.state_dict().items())


def test_the_state_gives_a_bit_identical_continuation(learner, base_folder, batches):
    tuned(learner, batches[:3], STEPS)
    state = {name: value.clone() for name, value in learner.state_dict().items()}
    expected = [learner.train_step(batch) for batch in batches[3:]]
    other = new_learner(base_folder)
    other.load_state_dict(state)
    assert [other.train_step(batch) for batch in batches[3:]] == expected
    assert torch.equal(other.flat, learner.flat)


def test_a_fresh_learners_state_can_be_loaded_too(learner, base_folder, batches):
    state = {name: value.clone() for name, value in learner.state_dict().items()}
    tuned(learner, batches)
    learner.load_state_dict(state)
    assert tuned(learner, batches) == tuned(new_learner(base_folder), batches)


def test_restore_base_forgets_everything(learner, batches):
    first = tuned(learner, batches)
    assert not torch.equal(learner.flat, learner.base)
    learner.restore_base()
    assert torch.equal(learner.flat, learner.base)
    assert tuned(learner, batches) == first


def test_a_task_begins_with_a_fresh_optimizer_and_schedule(learner, batches, monkeypatch):
    tuned(learner, batches)
    assert all(value.any() for value in learner.moments.values())
    learner.begin_task(4)
    assert not any(value.any() for value in learner.moments.values())
    rates = []

    def note_rate(*tensors, lr, **settings):
        rates.append(lr)
        return adamw(*tensors, lr=lr, **settings)

    monkeypatch.setattr("proxymix.learners.learner.adamw", note_rate)
    for batch in batches[:4]:
        learner.train_step(batch)
    assert rates == pytest.approx([TUNING.learning_rate * rate(step, 4) for step in range(4)])


def test_the_loss_is_per_answer_token_and_blind_to_padding(learner, batches):
    batch = batches[0]
    wider = Batch(F.pad(batch.input_ids, (0, 9), value=3), F.pad(batch.labels, (0, 9), value=IGNORED))
    with torch.no_grad():
        plain, padded = (learner._token_losses(side_by_side([b])) for b in (batch, wider))
    assert plain.numel() == batch.shape.num_scored
    assert plain.count_nonzero() == batch.num_answer_tokens
    assert torch.allclose(plain, padded, atol=1e-5)


def test_losses_of_probes_are_those_of_each_alone(learner, smoke_builder, smoke_case):
    probes = {source.name: source.probe for source in [*smoke_builder.anchors, *map(smoke_builder.source, smoke_case.tasks)]}
    together = learner.losses(probes)
    assert list(together) == list(probes)
    for name, probe in probes.items():
        logits = learner.model.logits(probe.input_ids[None], everywhere(probe.input_ids[None]))
        expected = F.cross_entropy(logits.flatten(0, 2), probe.labels.flatten(), ignore_index=IGNORED)
        assert together[name] == pytest.approx(expected.item(), abs=1e-5)
        assert learner.losses({name: probe})[name] == pytest.approx(together[name], abs=1e-5)


def test_reading_losses_changes_nothing(learner, source, batches):
    tuned(learner, batches[:2], STEPS)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    learner.losses({"x": source.probe})
    learner.accuracies({"x": source.validation})
    assert all(torch.equal(before[name], value) for name, value in learner.state_dict().items())


def test_accuracies_are_those_of_greedy_generation(learner, smoke_builder, smoke_case, base_folder, tmp_path):
    splits = [smoke_builder.source(spec).validation for spec in smoke_case.tasks]  # answers of one word, and of several
    learner.begin_task(30)
    for step in range(30):
        learner.train_step(gather(splits, [(row % 2, (8 * step + row) % 16) for row in range(16)]))
    rights = learner.accuracies(dict(zip("ab", splits, strict=True)))
    assert 0 < torch.cat(list(rights.values())).double().mean() < 1  # both kinds, or the test would say nothing
    save_model(learner.model, Path(base_folder), tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    for split, right in zip(splits, rights.values(), strict=True):
        assert [generated_right(model, tokenizer, split, row) for row in range(len(right))] == right.tolist()


def generated_right(model, tokenizer, split: EncodedSplit, row):
    places = (split.labels[row] != IGNORED).nonzero().ravel()
    prompt, answer = split.input_ids[row, : places[0] + 1], split.labels[row, places].tolist()
    output = model.generate(
        prompt[None], attention_mask=torch.ones_like(prompt)[None], do_sample=False, max_new_tokens=len(answer), pad_token_id=tokenizer.pad_token_id
    )
    return output[0, len(prompt) :].tolist() == answer


def test_all_tuned_parameters_live_in_one_tensor(learner):
    total = sum(parameter.numel() for parameter in learner.model.parameters())
    assert learner.flat.numel() == total
    with torch.no_grad():
        learner.flat.zero_()
    assert all(not parameter.any() for parameter in learner.model.parameters())


LORA = LoraConfig(rank=4, alpha=8, modules=["q_proj", "v_proj", "down_proj"])


def adapted(base_folder):
    torch.manual_seed(0)
    return Learner(load_model(base_folder, "transformers", LORA), TUNING)


def test_saving_adapters_moves_no_weight_and_writes_the_same_model(base_folder, batches, tmp_path):
    learner = adapted(base_folder)
    tuned(learner, batches)
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    for name in ("first", "second"):
        save_model(learner.model, base_folder, tmp_path / name)
    after = learner.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (tmp_path / "first/model.safetensors").read_bytes() == (tmp_path / "second/model.safetensors").read_bytes()
    saved, ids = AutoModelForCausalLM.from_pretrained(tmp_path / "first"), batches[0].input_ids
    with torch.no_grad():
        expected = learner.model.logits(ids[None], everywhere(ids[None]))[0]
        assert torch.allclose(saved(ids).logits, expected, atol=1e-5)
        assert not torch.allclose(AutoModelForCausalLM.from_pretrained(base_folder)(ids).logits, expected, atol=1e-2)


def test_every_method_starts_from_the_same_adapters(base_folder, batches, tmp_path):
    learner = adapted(base_folder)
    start = learner.flat.detach().clone()
    first = tuned(learner, batches)
    save_model(learner.model, base_folder, tmp_path)
    learner.restore_base()
    assert torch.equal(learner.flat, start)
    assert tuned(learner, batches) == first
    assert torch.equal(adapted(base_folder).flat, start)  # As after a restart of the worker.


def test_adapters_alone_are_tuned_and_merged_when_saved(base_folder, batches, source, tmp_path):
    torch.manual_seed(0)
    model = load_model(base_folder, "transformers", LoraConfig(rank=4, alpha=8))
    learner = Learner(model, TUNING)
    assert 0 < learner.flat.numel() < sum(parameter.numel() for parameter in model.parameters()) / 2
    losses = tuned(learner, batches)
    assert losses[-1] < losses[0]
    save_model(model, Path(base_folder), tmp_path)
    merged = Learner(load_model(tmp_path, "lean"), TUNING)
    assert merged.losses({"x": source.probe})["x"] == pytest.approx(learner.losses({"x": source.probe})["x"], abs=1e-4)
    # The adapters go on as they were: saving merged a copy.
    assert learner.train_step(batches[0]) == pytest.approx(merged.losses({"x": as_split(batches[0])})["x"], abs=1e-4)


def as_split(batch):
    return EncodedSplit(batch.input_ids, batch.labels, torch.full((len(batch.input_ids),), batch.input_ids.shape[1]))
