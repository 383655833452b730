"""Base models and mirroring pilots as Ray tasks: equal bases are trained once, and what any run has found out is not run again."""

import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from own_ray import own_ray

from cluster.tuning import target_builder
from proxymix.account import Account
from proxymix.cases import draw_cases, proxy_builder
from proxymix.config import ModelConfig
from proxymix.controllers.baselines import UniformReplay
from proxymix.errors import UserError
from proxymix.learners.pretraining import base_cost
from proxymix.tuning_config import LoraConfig, ParallelismConfig, TargetConfig

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray itself uses what is deprecated.
    import ray

    from cluster import pilots
    from cluster.case_keys import case_key
    from cluster.pilots import PilotRun, accuracy_matrices, pretrain_bases, run_pilots
    from cluster.tasks import run_cached_tasks

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")]


@pytest.fixture(scope="module")
def cluster():
    with own_ray(2, {"OMP_NUM_THREADS": "1"}):
        yield


def test_equal_bases_are_trained_once(cluster, smoke_config, base_folder, tmp_path, monkeypatch):
    config = smoke_config.model_copy(
        update={"cache_root": str(tmp_path), "pretraining": smoke_config.pretraining.model_copy(update={"num_steps": 2})}
    )
    submitted, run_tasks = [], pilots.run_tasks
    monkeypatch.setattr(pilots, "run_tasks", lambda submissions, *rest: submitted.extend(submissions) or run_tasks(submissions, *rest))
    models = [ModelConfig(preset="nano"), ModelConfig(preset="nano", implementation="transformers"), ModelConfig(path=base_folder)]
    folders, trained = pretrain_bases(config, models, lambda done, total: None)
    assert folders == [folders[0], folders[0], base_folder]
    assert [str(path) for path in tmp_path.iterdir()] == [folders[0]]
    assert len(submitted) == 1
    assert trained == {folders[0]}
    assert base_cost(folders[0]).flops > 0
    assert pretrain_bases(config, models, lambda done, total: None) == (folders, set())
    assert len(submitted) == 1


def expected_flops(make_builder, config, base_folder, case):
    """Counted on the very run of the one seed."""
    run = make_builder(config, base_folder).build(case)
    run.validation_accuracies()
    records = []
    while not run.done:
        records += [run.advance(UniformReplay(config.transfer.replay_share).decide(run.observe()))]
        if run.stage_index == 0:
            run.validation_accuracies()
    return run.flops


def test_pilots_of_one_model_agree_and_are_run_once_for_all_runs(cluster, smoke_config, base_folder, tmp_path):
    target = smoke_config.target.model_copy(update={"model": ModelConfig(path=base_folder, implementation="transformers")})
    transfer = smoke_config.transfer.model_copy(update={"num_seeds": 1})
    config = smoke_config.model_copy(update={"target": target, "transfer": transfer, "cache_root": str(tmp_path / "cache")})
    [case] = draw_cases(config.controller.curriculum, config.tuning, 1, seed=0, label="pilot")
    accounts = [Account(tmp_path / name) for name in ("cold.jsonl", "warm.jsonl")]
    pilots = [run_pilots(config, (base_folder, base_folder), [case], account, lambda done, total: None)[0] for account in accounts]
    assert pilots[0].proxy == pytest.approx(pilots[0].target, abs=1e-6)
    assert np.array_equal(pilots[0].target, pilots[1].target)
    expected = {role: expected_flops(make, config, base_folder, case) for role, make in (("proxy", proxy_builder), ("target", target_builder))}
    assert expected["proxy"] < expected["target"]  # Lean computes the last layer where answers are.
    for account in accounts:
        assert {line.model: line.flops for line in account.made("pilot")} == expected
    assert [len(account.spent()) for account in accounts] == [2, 0]


def test_a_target_that_is_spread_out_is_piloted_by_all_its_workers(cluster, smoke_config, base_folder, smoke_case, tmp_path):
    """One alone would have to hold all of it: same accuracies and costs, and nothing left of Ray Train's files."""
    together = ParallelismConfig(num_workers=2, strategy="fsdp")
    found = {}
    for name, parallelism in (("alone", ParallelismConfig()), ("together", together)):
        target = TargetConfig(model=ModelConfig(path=base_folder, implementation="transformers"), parallelism=parallelism)
        config = smoke_config.model_copy(update={"target": target, "cache_root": str(tmp_path / name)})
        runs = [PilotRun(config, "target", base_folder, smoke_case, "pilot")]
        account = Account(tmp_path / f"{name}.jsonl")
        found[name] = accuracy_matrices(config, runs, account, lambda done, total: None)[0], account.flops("pilot", "pilot")
        assert [path.suffix for path in (tmp_path / name / "pilots").iterdir()] == [".json"]
    assert found["together"][0] == pytest.approx(found["alone"][0])
    assert found["together"][1] == found["alone"][1]


def test_a_mistake_that_all_workers_find_is_one_message(cluster, smoke_config, base_folder, smoke_case, tmp_path):
    target = TargetConfig(
        model=ModelConfig(path=base_folder, implementation="transformers"),
        lora=LoraConfig(modules=["nothing_like_it"]),
        parallelism=ParallelismConfig(num_workers=2, strategy="fsdp"),
    )
    config = smoke_config.model_copy(update={"target": target, "cache_root": str(tmp_path)})
    with pytest.raises(UserError, match="nothing_like_it"):
        accuracy_matrices(config, [PilotRun(config, "target", base_folder, smoke_case, "pilot")], Account(tmp_path / "costs.jsonl"), lambda *_: None)


def test_a_damaged_entry_is_made_anew_and_another_case_is_another_entry(cluster, smoke_config, base_folder, smoke_case, tmp_path):
    config = smoke_config.model_copy(update={"cache_root": str(tmp_path / "cache")})
    keys = {case_key(config, "proxy", base_folder, case, 0.1) for case in (smoke_case, replace(smoke_case, seed=1), replace(smoke_case, name="x"))}
    assert len(keys) == 2  # the name decides nothing
    (tmp_path / "damaged.json").write_text('{"cut')
    told = []
    submissions = [partial(ray.remote(lambda: 7).remote)]
    for _ in range(2):
        values = run_cached_tasks(tmp_path, ["damaged"], submissions, 1, lambda *_: None, lambda *facts: told.append(facts))
        assert values == [7]
    assert told == [(0, 7, False), (0, 7, True)]
