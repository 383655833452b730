"""What the jobs write into the account beside what the runs themselves write."""

from jobs.train_controller import account_for
from proxymix.account import Account, total_flops

ROW = {"iteration": 3, "episodes": 8, "flops": 800, "cpu_seconds": 4.0, "num_dropped": 0}


def test_lost_episodes_are_spent_and_not_made(tmp_path):
    account = Account(tmp_path / "costs.jsonl")
    account_for(account, ROW | {"num_dropped": 2})
    lines = [(line.id, line.flops, line.cpu_seconds, line.episodes) for line in account.lines()]
    assert lines == [("iteration3", 800, 4.0, 8), ("iteration3", 200, 1.0, 2)]
    assert (total_flops(account.made("episodes")), total_flops(account.spent())) == (800, 1000)


def test_an_iteration_without_losses_is_one_line(tmp_path):
    account = Account(tmp_path / "costs.jsonl")
    account_for(account, ROW)
    assert len(account.lines()) == 1
