"""Base models and mirroring pilots as Ray tasks: equal bases are trained once, and the pilots' cost is counted."""

import warnings

import pytest

from proxymix.cases import draw_cases, proxy_builder
from proxymix.config import ModelConfig
from proxymix.continual import run_continual
from proxymix.controllers.baselines import UniformReplay

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray itself uses what is deprecated.
    import ray

    from cluster import pilots
    from cluster.pilots import PilotTokens, pretrain_bases, run_pilots

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")]


@pytest.fixture(scope="module")
def cluster():
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})
    yield
    ray.shutdown()


def test_equal_bases_are_trained_once(cluster, smoke_config, base_folder, tmp_path, monkeypatch):
    config = smoke_config.model_copy(
        update={"cache_root": str(tmp_path), "pretraining": smoke_config.pretraining.model_copy(update={"num_steps": 2})}
    )
    submitted, run_tasks = [], pilots.run_tasks
    monkeypatch.setattr(pilots, "run_tasks", lambda submissions, *rest: submitted.extend(submissions) or run_tasks(submissions, *rest))
    models = [ModelConfig(preset="nano"), ModelConfig(preset="nano", implementation="transformers"), ModelConfig(path=base_folder)]
    folders = pretrain_bases(config, models, lambda done, total: None)
    assert folders == [folders[0], folders[0], base_folder]
    assert [str(path) for path in tmp_path.iterdir()] == [folders[0]]
    assert len(submitted) == 2


def expected_tokens(config, base_folder, case):
    """Counted on the very run of the one seed."""
    run = proxy_builder(config, base_folder).build(case)
    records = run_continual(run, UniformReplay(config.transfer.replay_share))
    rows = sum(int(source.validation.lengths.sum()) for source in [*run.anchors, *run.tasks]) * (len(run.tasks) + 1)
    return PilotTokens(sum(r.num_tokens for r in records), sum(r.num_validation_tokens for r in records) + rows)


def test_pilots_of_one_model_agree_and_their_tokens_are_counted(cluster, smoke_config, base_folder):
    target = smoke_config.target.model_copy(update={"model": ModelConfig(path=base_folder, implementation="transformers")})
    transfer = smoke_config.transfer.model_copy(update={"num_seeds": 1})
    config = smoke_config.model_copy(update={"target": target, "transfer": transfer})
    [case] = draw_cases(config.controller.curriculum, config.tuning, 1, seed=0, label="pilot")
    [pilot], (proxy_tokens, target_tokens) = run_pilots(config, (base_folder, base_folder), [case], lambda done, total: None)
    assert pilot.proxy == pytest.approx(pilot.target, abs=1e-6)
    assert proxy_tokens == target_tokens == expected_tokens(config, base_folder, case)
