import json
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from proxymix import checkpoints
from proxymix import journal as journal_module
from proxymix.account import Account
from proxymix.artifacts import read_jsonl
from proxymix.cases import Case
from proxymix.checkpoints import Checkpoints
from proxymix.config import SourceConfig
from proxymix.continual import run_continual
from proxymix.controllers.baselines import Ramp
from proxymix.errors import SupersededError, UserError
from proxymix.evaluation.verification import NUM_TOKENS, Fingerprint
from proxymix.fence import Fence
from proxymix.journal import RunJournal, is_finished

CONTROLLER = Ramp(2.0)


class KilledError(Exception):
    pass


@pytest.fixture
def start(smoke_builder, smoke_case, base_folder, tmp_path):
    """What every start of the job does: build the run at its beginning, then go on from the journal."""

    def start(folder):
        run = smoke_builder.build(smoke_case)
        journal = RunJournal(tmp_path / folder, smoke_builder.learner, Path(base_folder))
        return run, journal, journal.resume(run)

    return start


@pytest.fixture
def whole(start):
    run, journal, resumed = start("whole")
    assert not resumed
    run_continual(run, CONTROLLER, journal)
    return journal.folder


def rows(folder):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in read_jsonl(folder / "decisions.jsonl")]


def weights(folder, task):
    return load_file(folder / "checkpoints" / f"task{task}" / "model.safetensors")


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_what_a_finished_run_leaves(whole, smoke_builder):
    assert is_finished(whole)
    assert sorted(path.name for path in whole.iterdir()) == ["checkpoints", "decisions.jsonl", "done"]
    assert sorted(path.name for path in (whole / "checkpoints").iterdir()) == ["task0", "task1"]
    model = AutoModelForCausalLM.from_pretrained(whole / "checkpoints" / "task1")
    tokens = torch.arange(4, 20)[None]
    with torch.no_grad():
        ours = smoke_builder.learner.model
        assert torch.allclose(model(tokens).logits, ours.logits(tokens[None], torch.arange(16).expand(1, 1, 16))[0], atol=1e-5)
    assert len(AutoTokenizer.from_pretrained(whole / "checkpoints" / "task0")) == model.config.vocab_size
    assert not same(weights(whole, 0), weights(whole, 1))


def test_a_row_tells_everything(whole):
    first, *_, last = read_jsonl(whole / "decisions.jsonl")
    assert first["request_id"] == "smoke/task0/stage0"
    assert [(source["name"], source["role"], len(source["losses"])) for source in first["sources"]] == [
        ("safety", "anchor", 1),
        ("general", "anchor", 1),
        ("table_small", "current", 1),
    ]
    assert first["controller"] == {"name": "ramp_2", "sha256": None}
    assert first["replay_share"] == pytest.approx(0.5)
    assert sum(first["counts"].values()) == 3 * 8
    assert sum(last["counts"].values()) == 4 * 8
    assert sum(last["weights"].values()) == pytest.approx(1)
    assert (last["task_index"], last["stage_index"], last["num_stages"], last["fallback"]) == (1, 1, 2, None)
    assert set(last["seconds"]) == {"train", "validate", "decide", "cpu"}
    assert min(last["training_flops"], last["validation_flops"]) > 0
    json.dumps(last, allow_nan=False)


def killed_after(num_writes, patch):
    """The journal's next `num_writes` atomic writes happen, the one after them kills the worker."""
    left = [num_writes]

    def counted(write):
        def wrapper(*arguments):
            if left[0] == 0:
                raise KilledError
            left[0] -= 1
            write(*arguments)

        return wrapper

    for name in ("write_jsonl", "write_folder", "write_text"):
        patch.setattr(journal_module, name, counted(getattr(journal_module, name)))
    patch.setattr(checkpoints, "save_file", counted(checkpoints.save_file))
    patch.setattr(Checkpoints, "_seal", counted(Checkpoints._seal))


def test_a_run_killed_before_any_write_ends_as_one_that_never_was(start, whole, monkeypatch):
    for num_writes in count():
        folder = f"killed{num_writes}"
        with monkeypatch.context() as patch:
            killed_after(num_writes, patch)
            run, journal, _ = start(folder)
            try:
                run_continual(run, CONTROLLER, journal)
            except KilledError:
                journal.close()
            else:
                break  # every write has been the missing one once
        run, journal, _ = start(folder)
        run_continual(run, CONTROLLER, journal)
        assert journal.finished
        assert rows(journal.folder) == rows(whole)
        assert all(same(weights(journal.folder, task), weights(whole, task)) for task in (0, 1))
    assert num_writes == 4 + 2 + 3 * 2 + 1  # decisions, models, shards and their hashes, done


def test_every_stage_has_its_line_in_the_account(smoke_builder, smoke_case, base_folder, tmp_path):
    account = Account(tmp_path / "costs.jsonl")
    run = smoke_builder.build(smoke_case)
    journal = RunJournal(tmp_path / "ramp_2" / "seed0", smoke_builder.learner, Path(base_folder), account, workers=2, gpus=2)
    records = run_continual(run, CONTROLLER, journal)
    lines = account.made("tuning")
    assert [line.id for line in lines] == [f"ramp_2/seed0/task{task}/stage{stage}" for task in (0, 1) for stage in (0, 1)]
    assert sum(line.flops for line in lines) == run.flops
    wall = [sum(record.seconds[phase] for phase in ("train", "validate", "decide")) for record in records]
    assert [line.gpu_seconds for line in lines] == pytest.approx([2 * seconds for seconds in wall], abs=1e-3)
    assert [line.cpu_seconds for line in lines] == pytest.approx([2 * record.seconds["cpu"] for record in records], abs=1e-3)


def test_resuming_goes_on_and_does_not_start_over(start, whole):
    run, journal, _ = start("halted")
    for _ in range(3):
        decision = CONTROLLER.decide(run.observe())
        journal.stage_finished(run, run.advance(decision))
    journal.close()
    run, journal, resumed = start("halted")
    assert resumed
    assert (run.task_index, run.stage_index, len(journal.rows)) == (1, 1, 3)
    assert len(run_continual(run, CONTROLLER, journal)) == 1
    assert rows(journal.folder) == rows(whole)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_workers_that_were_cut_off_write_nothing_once_others_have_taken_over(start, whole):
    run, journal, _ = start("run")
    journal.stage_finished(run, run.advance(CONTROLLER.decide(run.observe())))
    boundary = run.observe()
    record = run.advance(CONTROLLER.decide(boundary))
    journal.checkpoints.wait()
    asked = journal.asking(lambda sha256: CONTROLLER)
    successor, taken_over, resumed = start("run")
    assert resumed
    before = contents(journal.folder)
    for write in (lambda: journal.stage_finished(run, record), lambda: asked.decide(boundary)):
        with pytest.raises(SupersededError, match="others tune it, so nothing more is written"):
            write()
    assert contents(journal.folder) == before
    run_continual(successor, CONTROLLER, taken_over)
    assert rows(taken_over.folder) == rows(whole)
    with pytest.raises(SupersededError, match="has none now"):
        journal.task_finished(successor, 1)


@pytest.mark.parametrize(("place", "write", "left"), [(checkpoints, "save_file", []), (journal_module, "write_model", ["000001"])])
def test_what_was_begun_before_others_took_over_does_not_become_whole(start, monkeypatch, place, write, left):
    """A state, and a model, which comes before a state."""
    run, journal, _ = start("run")
    written = getattr(place, write)

    def taken_over(*arguments):
        written(*arguments)
        Fence(journal.folder / "token").take()

    monkeypatch.setattr(place, write, taken_over)
    for _ in range(1 + len(left)):
        journal.checkpoints.wait()
        journal.stage_finished(run, run.advance(CONTROLLER.decide(run.observe())))
    with pytest.raises(SupersededError, match="others tune it, so nothing more is written"):
        journal.checkpoints.wait()
    assert [path.parent.name.split("-")[0] for path in journal.folder.rglob("*.sha256")] == left
    assert not list(journal.folder.glob("checkpoints/*"))


def test_a_run_is_over_though_its_last_states_stay(start, monkeypatch, caplog):
    run, journal, _ = start("run")

    def refuse():
        raise ConnectionError("the bucket is away")

    monkeypatch.setattr(journal.checkpoints, "clear", refuse)
    run_continual(run, CONTROLLER, journal)
    assert journal.finished
    assert "could not be removed: the bucket is away" in caplog.text


def test_a_model_that_cannot_be_written_is_one_message(start, whole, monkeypatch):
    def refuse(*arguments):
        raise ValueError("GenerationConfig is invalid")

    run, journal, _ = start("refused")
    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "write_model", refuse)
        told = r"^target: could not write the tuned model to '.*task0' \(ValueError: GenerationConfig is invalid\); the stage boundary before is kept"
        with pytest.raises(UserError, match=told):
            run_continual(run, CONTROLLER, journal)
    run, journal, _ = start("refused")
    assert (run.task_index, run.stage_index) == (0, 1)
    run_continual(run, CONTROLLER, journal)
    assert rows(journal.folder) == rows(whole)


def test_a_fingerprint_shows_first_what_the_task_just_over_has_taught(smoke_builder, base_folder, tmp_path):
    tasks = tuple(SourceConfig(format="builtin", task=task, world="heldout-0") for task in ("table_small", "roleplay", "modular"))
    run = smoke_builder.build(Case("three", tasks, (1, 1, 1), seed=1))
    journal = RunJournal(tmp_path, smoke_builder.learner, Path(base_folder))
    run_continual(run, CONTROLLER, journal)
    for index, task in enumerate(run.tasks):
        shown = Fingerprint.read(tmp_path / "checkpoints" / f"task{index}").tokens
        assert shown[0] == task.probe.input_ids[0, : int(task.probe.lengths[0])][-NUM_TOKENS:].tolist()
        assert len(shown) == 4
        assert shown[1:3] == [anchor.probe.input_ids[0, : int(anchor.probe.lengths[0])][-NUM_TOKENS:].tolist() for anchor in run.anchors]
