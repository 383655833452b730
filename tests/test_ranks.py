"""Workers speak with one voice, and fail together."""

import json
from functools import partial

import pytest
import torch
import torch.distributed as dist
from tiny_checkpoints import make_checkpoint

from proxymix.artifacts import write_jsonl
from proxymix.config import validated
from proxymix.errors import SupersededError, UserError
from proxymix.ranks import Ranks


def one_rank(rank, store, results):
    """What two bare processes say to each other, without Ray."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    ranks, said = Ranks(rank, 2), {}
    tensor = torch.tensor([1.0 + rank])
    ranks.reduce(tensor)
    said["sum"] = tensor.item()
    said["first"] = ranks.from_first(lambda: f"from {rank}")
    said["together"] = ranks.together(lambda: rank)
    for name, faulty, kind in (("together", 1, UserError), ("from_first", 0, UserError), ("together", 0, SupersededError)):
        try:
            getattr(ranks, name)(partial(fail_on, faulty, rank, kind))
        except kind as error:
            said[f"{kind.__name__} {name}"] = str(error)
    (results / str(rank)).write_text(json.dumps(said))
    dist.destroy_process_group()


def fail_on(faulty, rank, kind):
    if rank == faulty:
        raise kind(f"no data on {rank}")


def test_ranks_agree_and_fail_together(tmp_path):
    torch.multiprocessing.start_processes(one_rank, args=(str(tmp_path / "store"), tmp_path), nprocs=2, start_method="spawn")
    said = [json.loads((tmp_path / str(rank)).read_text()) for rank in (0, 1)]
    faults = {"UserError together": "no data on 1", "UserError from_first": "no data on 0", "SupersededError together": "no data on 0"}
    shared = {"sum": 3.0, "first": "from 0", **faults}
    assert said == [{**shared, "together": rank} for rank in (0, 1)]


def one_worker(rank, root, lacking):
    """Of two on nodes of their own, the second of which lacks something; Ray is not started."""
    from cluster.tuning import TuningPlan, _tune, target_builder

    dist.init_process_group("gloo", init_method=f"file://{root / 'store'}", rank=rank, world_size=2)
    ranks, lost = Ranks(rank, 2), root / "lost"
    tree = {"name": "two", "cache_root": str(root / f"cache{rank}"), "methods": ["no_replay"], "data_root": str(root)}
    tree["sequence"] = {"tasks": [{"format": "jsonl", "path": "rows.jsonl"}], "anchors": []}
    tree["target"] = {"model": {"path": str(root / "base"), "implementation": "transformers"}, "parallelism": {"num_workers": 2}}
    config = validated(tree | {"proxy": {"model": {"path": "x"}}, "tuning": {"max_length": 64, "validation_size": 4}}, "two")
    base = str(lost if lacking == "model" and rank == 1 else root / "base")
    try:
        builder = ranks.together(partial(target_builder, config, base, ranks, torch.device("cpu")))
        if lacking == "data" and rank == 1:
            builder.config = config.model_copy(update={"data_root": str(lost)})
        _tune(TuningPlan(config, (("no_replay", 0),), base, str(root / "run"), None, None), "no_replay", 0, builder, ranks)
    except UserError as error:
        (root / str(rank)).write_text(str(error))
    dist.destroy_process_group()


@pytest.mark.parametrize("lacking", ["model", "data"])
def test_what_one_node_lacks_is_told_on_all(tmp_path, lacking):
    make_checkpoint(tmp_path / "base", "llama")
    write_jsonl(tmp_path / "rows.jsonl", [{"prompt": f"one two {index}", "response": "three"} for index in range(400)])
    torch.multiprocessing.start_processes(one_worker, args=(tmp_path, lacking), nprocs=2, start_method="spawn")
    told = [(tmp_path / str(rank)).read_text() for rank in (0, 1)]
    assert told[0] == told[1]
    assert str(tmp_path / "lost") in told[0]
