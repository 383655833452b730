"""What a run goes on from: torn, full, far away, or written by another number of workers, it ends as if nothing had happened."""

import json
import resource
import threading
from pathlib import Path

import fsspec
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from test_large import TUNING
from test_parallel import learner_of, sources
from tiny_checkpoints import make_checkpoint
from torch.distributed.device_mesh import init_device_mesh

from proxymix import checkpoints
from proxymix.artifacts import read_jsonl
from proxymix.checkpoints import Checkpoints
from proxymix.continual import ContinualRun, run_continual
from proxymix.controllers.baselines import Ramp
from proxymix.errors import UserError
from proxymix.journal import RunJournal
from proxymix.ranks import ALONE, Ranks

CONTROLLER = Ramp(2.0)


@pytest.fixture
def start(smoke_builder, smoke_case, base_folder, tmp_path):
    """What every start of the job does."""

    def start(folder, kept=None):
        run = smoke_builder.build(smoke_case)
        journal = RunJournal(tmp_path / folder, smoke_builder.learner, Path(base_folder), checkpoints=kept)
        journal.resume(run)
        return run, journal

    return start


def tune(run, journal, num_stages=None):
    """Some stages, or all that are left; then the worker is gone."""
    if num_stages is None:
        run_continual(run, CONTROLLER, journal)
    for _ in range(num_stages or 0):
        journal.stage_finished(run, run.advance(CONTROLLER.decide(run.observe())))
    journal.close()


def outcome(folder):
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in read_jsonl(folder / "decisions.jsonl")]
    paths = sorted((folder / "checkpoints").glob("task*/*.safetensors"))
    return rows, {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture
def whole(start):
    run, journal = start("whole")
    tune(run, journal)
    return outcome(journal.folder)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "cut": lambda folder: (folder / "0-of-1.safetensors").write_bytes((folder / "0-of-1.safetensors").read_bytes()[:-1]),
    "changed": lambda folder: flip(folder / "0-of-1.safetensors"),
    "without its shard": lambda folder: (folder / "0-of-1.safetensors").unlink(),
    "without its hash": lambda folder: (folder / "0-of-1.sha256").unlink(),
    "with half a hash": lambda folder: (folder / "0-of-1.sha256").write_text((folder / "0-of-1.sha256").read_text()[:9]),
    "without the shard of another worker": lambda folder: [path.rename(folder / path.name.replace("of-1", "of-2")) for path in folder.iterdir()],
    "empty": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_torn_checkpoint_is_refused_and_the_one_before_used(start, whole, caplog, damage):
    run, journal = start("torn")
    tune(run, journal, 3)
    *_, last = sorted((journal.folder / "state").iterdir())
    DAMAGES[damage](last)
    run, journal = start("torn")
    assert f"{last.name} is refused: shard " in caplog.text
    assert not last.exists()
    assert (run.task_index, run.stage_index) == (1, 0)
    assert len(list(read_jsonl(journal.folder / "decisions.jsonl"))) == 2
    tune(run, journal)
    assert outcome(journal.folder) == whole


def test_where_none_is_whole_the_run_starts_over(start, whole):
    run, journal = start("torn")
    tune(run, journal, 3)
    for shard in (journal.folder / "state").rglob("*.safetensors"):
        flip(shard)
    run, journal = start("torn")
    assert (run.task_index, run.stage_index, list(read_jsonl(journal.folder / "decisions.jsonl"))) == (0, 0, [])
    tune(run, journal)
    assert outcome(journal.folder) == whole


def test_checkpoints_may_lie_anywhere(start, whole):
    place = "memory://bucket/runs/far"
    run, journal = start("far", Checkpoints(place))
    tune(run, journal, 3)
    assert not (journal.folder / "state").exists()
    run, journal = start("far", Checkpoints(place))
    assert len(journal.rows) == 3
    tune(run, journal)
    assert outcome(journal.folder) == whole
    assert not fsspec.filesystem("memory").exists("/bucket/runs/far")


@pytest.mark.parametrize("keep", [1, 2])
def test_the_last_few_are_kept(start, keep, tmp_path):
    run, journal = start("kept", Checkpoints(str(tmp_path / "elsewhere"), keep))
    tune(run, journal, 3)
    stages = [int(path.name.split("-")[0]) for path in sorted((tmp_path / "elsewhere").iterdir())]
    assert stages == list(range(3 - keep, 4))


def test_a_full_disk_stops_the_run_and_costs_a_stage(start, whole):
    run, journal = start("full")
    tune(run, journal, 1)
    run, journal = start("full")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    shard = next((journal.folder / "state").rglob("*.safetensors"))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (shard.stat().st_size // 2, limits[1]))
        journal.checkpoints.save(2, journal.learner.state_dict(), {})
        with pytest.raises(UserError, match=r"target.checkpoints: could not write to .* the stage boundary before is kept: make room"):
            tune(run, journal)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    journal.close()
    run, journal = start("full")
    assert len(journal.rows) == 1
    tune(run, journal)
    assert outcome(journal.folder) == whole


def test_tuning_does_not_wait_for_the_disk(start, whole, monkeypatch):
    """The first state is written only when the second stage is over, and is still that of the first."""
    slow, save = threading.Event(), checkpoints.save_file

    def save_slowly(*arguments):
        assert slow.wait(60)
        save(*arguments)

    run, journal = start("slow")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", save_slowly)
        journal.stage_finished(run, run.advance(CONTROLLER.decide(run.observe())))
        run.advance(CONTROLLER.decide(run.observe()))
        slow.set()
        journal.close()
    run, journal = start("slow")
    assert len(journal.rows) == 1
    tune(run, journal)
    assert outcome(journal.folder) == whole


CASE = "fsdp-2"


def start_large(root, name, ranks=ALONE, workers=None):
    base = root / "llama"
    anchor, *tasks = sources(base)
    learner = learner_of(root, CASE, workers)
    run = ContinualRun(tasks, [anchor], learner, TUNING, seed=0)
    journal = RunJournal(root / name, learner, base, ranks=ranks)
    journal.resume(run)
    return run, journal


def two_workers(rank, root):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root / 'store'}", rank=rank, world_size=2)
    ranks, workers = Ranks(rank, 2), init_device_mesh("cpu", (2,))
    tune(*start_large(root, "whole", ranks, workers))
    for name in ("torn", "elastic"):
        tune(*start_large(root, name, ranks, workers), 3)
    dist.barrier()
    if rank == 0:
        *_, last = sorted((root / "torn" / "state").iterdir())
        flip(last / "1-of-2.safetensors")
    dist.barrier()
    run, journal = start_large(root, "torn", ranks, workers)
    (root / f"{rank}.json").write_text(json.dumps([run.task_index, run.stage_index]))
    tune(run, journal)
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    root = tmp_path_factory.mktemp("large")
    make_checkpoint(root / "llama", "llama")
    torch.multiprocessing.start_processes(two_workers, args=(root,), nprocs=2, start_method="spawn")
    return root


def test_shards_of_two_workers_bring_back_the_very_run_and_one_torn_shard_is_enough_to_refuse(large):
    assert [json.loads((large / f"{rank}.json").read_text()) for rank in (0, 1)] == [[1, 0]] * 2
    assert outcome(large / "torn") == outcome(large / "whole")


def test_one_worker_goes_on_from_the_shards_of_two(large):
    run, journal = start_large(large, "elastic")
    assert (run.task_index, run.stage_index) == (1, 1)
    tune(run, journal)
    rows, expected = (outcome(large / name)[0] for name in ("elastic", "whole"))
    assert rows[:3] == expected[:3]
    assert rows[3]["counts"] == expected[3]["counts"]
    assert rows[3]["training_loss"] == pytest.approx(expected[3]["training_loss"], rel=1e-4)
    weights, others = (load_file(large / name / "checkpoints/task1/model.safetensors") for name in ("elastic", "whole"))
    assert all(torch.allclose(weights[name], others[name], atol=1e-5) for name in others)
