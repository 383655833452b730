"""The account: every key counts once in what was made, every line that was paid for in what was spent."""

from concurrent.futures import ProcessPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from proxymix.account import Account, Cost, CostLine, total_flops
from proxymix.artifacts import read_jsonl
from proxymix.report.costs import cost_sentence


def test_work_done_again_is_spent_twice_and_made_once(tmp_path):
    account = Account(tmp_path / "run" / "costs.jsonl")
    for _ in range(2):
        account.add("episodes", "iteration0", "proxy", Cost(10, 1.5), episodes=4)
    account.add("tuning", "random_10/seed0/task0/stage0", "target", Cost(5, 0.1, 2.0))
    assert total_flops(account.made("episodes")) == 10
    assert total_flops(account.made("episodes", "tuning")) == 15
    assert total_flops(account.spent()) == 25
    assert account.lines()[-1] == CostLine("tuning", "random_10/seed0/task0/stage0", "target", 5, 0.1, 2.0)


def test_what_a_cache_held_is_made_but_not_spent_and_told_once(tmp_path):
    account = Account(tmp_path / "costs.jsonl")
    for _ in range(2):
        account.add("pilot", "pilot0/seed0/proxy", "proxy", Cost(10), cached=True)
    account.add("pilot", "pilot1/seed0/proxy", "proxy", Cost(7))
    account.add("pilot", "pilot1/seed0/proxy", "proxy", Cost(7), cached=True)  # made here, then found by a resumed driver
    assert [line.id for line in account.lines()] == ["pilot0/seed0/proxy", "pilot1/seed0/proxy"]
    assert (total_flops(account.made("pilot")), total_flops(account.spent())) == (17, 7)


def test_a_line_cut_short_by_a_kill_takes_no_other_with_it(tmp_path):
    account = Account(tmp_path / "costs.jsonl")
    account.add("pilot", "a", "proxy", Cost(1))
    account.path.write_bytes(account.path.read_bytes() + b'{"item": "pilot", "id": "b", "mod')
    account.add("pilot", "c", "proxy", Cost(3))
    assert [line.id for line in account.lines()] == ["a", "c"]


def add_many(path, writer):
    for index in range(50):
        Account(path).add("tuning", f"{writer}/{index}", "target", Cost(index))


def test_many_processes_write_whole_lines(tmp_path):
    path = tmp_path / "costs.jsonl"
    with ProcessPoolExecutor(3) as pool:
        list(pool.map(add_many, [path] * 3, range(3)))
    assert len(list(read_jsonl(path))) == len(Account(path).made("tuning")) == 150


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=12))
def test_what_was_made_does_not_depend_on_who_paid(tmp_path_factory, events):
    """Any history of kills and warm caches over the same work: one cost of the results, and each payment counted."""
    account, work = Account(tmp_path_factory.mktemp("account") / "costs.jsonl"), {"a": 1, "b": 10, "c": 100}
    for id, cached in events:
        account.add("pilot", id, "proxy", Cost(work[id]), cached=cached)
    assert total_flops(account.made("pilot")) == sum(work[id] for id in {id for id, _ in events})
    assert total_flops(account.spent()) == sum(work[id] for id, cached in events if not cached)


def test_the_report_tells_what_was_found_and_what_was_done_again(tmp_path):
    account = Account(tmp_path / "costs.jsonl")
    account.add("pilot", "a", "proxy", Cost(60), cached=True)
    account.add("tuning", "b", "target", Cost(40))
    text = cost_sentence(account.made("pilot", "tuning"), account.spent())
    assert "took 100 operations, 60\u00a0% of them for the policy" in text
    assert "60\u00a0% came from a cache" in text
    assert "done again" not in text
    account.add("tuning", "b", "target", Cost(40))
    assert "done again took 40 more" in cost_sentence(account.made("pilot", "tuning"), account.spent())
