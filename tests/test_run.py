"""A run folder as a job sees it, without Ray."""

import json

import pytest
import yaml

from jobs.run import ALONE, Run
from proxymix.config import Config, ServiceConfig
from proxymix.controllers.frozen import SHIPPED
from proxymix.errors import UserError
from proxymix.tuning_config import ParallelismConfig


@pytest.fixture
def config(tmp_path):
    return Config.model_validate({"name": "one", "runs_root": str(tmp_path), "sequence": {"tasks": "long@heldout-0"}})


def opened(config, **changes):
    return Run.open(config.model_copy(update=changes), "pipeline")


def test_nothing_is_written_before_the_first_phase(config, tmp_path):
    run = opened(config)
    assert not list(tmp_path.iterdir())
    with run.phase("check_mirroring"):
        assert json.loads((run.folder / "manifest.json").read_text())["status"] == "running"
    assert yaml.safe_load((run.folder / "config.yaml").read_text())["name"] == "one"


def test_a_phase_is_timed_whether_it_ends_well_or_not(config):
    run = opened(config)
    with pytest.raises(UserError), run.phase("tune_target"):
        raise UserError("no")
    events = [json.loads(line) for line in (run.folder / "events.jsonl").read_text().splitlines()]
    assert [(event["phase"], event["event"]) for event in events] == [("tune_target", "start"), ("tune_target", "failed")]
    assert events[1]["seconds"] >= 0


def test_a_run_goes_on_only_with_the_config_it_began_with(config):
    opened(config).begin()
    opened(config, seeds=[0, 1], methods=["no_replay"])  # more rows change nothing that is there
    target = config.target.model_copy(update={"parallelism": ParallelismConfig(num_workers=2, use_gpu=True)})
    opened(config, target=target)  # nor do more machines
    opened(config, controller=config.controller.model_copy(update={"num_env_runners": 7}))
    with pytest.raises(UserError, match="begun with another proxy;"):
        opened(config, proxy=config.proxy.model_copy(update={"gpus_per_runner": 0.5}))
    with pytest.raises(UserError, match="begun with another seed, tuning;"):
        opened(config, seed=1, tuning=config.tuning.model_copy(update={"batch_size": 8}))


def test_how_many_proxies_share_a_gpu_may_change(config):
    share, whole = (config.proxy.model_copy(update={"gpus_per_runner": gpus}) for gpus in (0.5, 1.0))
    opened(config, proxy=share).begin()
    opened(config, proxy=whole)


def test_a_run_older_than_a_key_takes_its_default(config):
    run = opened(config)
    run.begin()
    tree = yaml.safe_load((run.folder / "config.yaml").read_text())
    del tree["evaluation"]["keep_checkpoints"]
    (run.folder / "config.yaml").write_text(yaml.safe_dump(tree))
    opened(config)


def test_roots_are_folders_not_addresses(config):
    with pytest.raises(UserError, match="runs_root: must be a path that every node sees"):
        opened(config, runs_root="s3://bucket/runs")


def test_workers_get_absolute_paths(config, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run = opened(config, runs_root="here", data_root="data")
    assert run.config.runs_root == str(tmp_path / "here")
    assert run.config.data_root == str(tmp_path / "data")
    served = [{"path": path} for path in ("other", "s3://bucket/other", SHIPPED)]
    service = ServiceConfig(controllers=served, token_file="secrets/token")
    found = opened(config, service=service).config.service
    assert [entry.path for entry in found.controllers] == [str(tmp_path / "other"), "s3://bucket/other", SHIPPED]
    assert found.token_file == str(tmp_path / "secrets/token")


def test_a_job_beside_another_has_a_service_of_its_own(config):
    apps = {job: Run.open(config, job).app for job in ("pipeline", "tune_target", "serve_controller")}
    assert apps["pipeline"] == apps["tune_target"]
    assert apps["serve_controller"] == apps["pipeline"] + ALONE


def test_progress_without_a_terminal_is_a_line_every_tenth_with_the_time_left(config, capsys):
    run = opened(config)
    with run.progress("episodes") as update:
        for done in range(101):
            update(done, 100)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("episodes:")]
    assert len(lines) == 10
    assert lines[0].startswith("episodes: 10/100, ")
    assert lines[0].endswith(" s left")
