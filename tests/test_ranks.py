"""Workers speak with one voice, and fail together."""

import json
from functools import partial

import torch
import torch.distributed as dist

from proxymix.errors import UserError
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
    for name, faulty in (("together", 1), ("from_first", 0)):
        try:
            getattr(ranks, name)(partial(fail_on, faulty, rank))
        except UserError as error:
            said[f"fault {name}"] = str(error)
    (results / str(rank)).write_text(json.dumps(said))
    dist.destroy_process_group()


def fail_on(faulty, rank):
    if rank == faulty:
        raise UserError(f"no data on {rank}")


def test_ranks_agree_and_fail_together(tmp_path):
    torch.multiprocessing.start_processes(one_rank, args=(str(tmp_path / "store"), tmp_path), nprocs=2, start_method="spawn")
    said = [json.loads((tmp_path / str(rank)).read_text()) for rank in (0, 1)]
    shared = {"sum": 3.0, "first": "from 0", "fault together": "no data on 1", "fault from_first": "no data on 0"}
    assert said == [{**shared, "together": rank} for rank in (0, 1)]
