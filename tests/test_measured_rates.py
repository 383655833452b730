"""Rates for `jobs.plan` out of a finished run: numbers worked out by hand, and the plan's keys."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from proxymix.artifacts import write_json, write_jsonl, write_text
from proxymix.config import Config
from proxymix.errors import UserError
from proxymix.planning.measured import measured_rates
from proxymix.planning.work import Rates, read_rates

ROOT = Path(__file__).parents[1]


@pytest.fixture
def finished(tmp_path):
    """Two stages of one target run on two workers, two iterations on two env runners, one score; all in round numbers."""
    tree = {
        "name": "done",
        "sequence": {"tasks": ["compare@heldout-0"]},
        "target": {"parallelism": {"num_workers": 2}},
        "evaluation": {"max_new_tokens": 4},
        "controller": {"num_env_runners": 2, "episodes_per_iteration": 16, "episodes": 32},
    }
    folder = tmp_path / "done"
    write_text(folder / "config.yaml", yaml.safe_dump(Config.model_validate(tree).model_dump(mode="json")))
    run = folder / "target" / "random_30" / "seed0"
    seconds = [{"train": 3.0, "validate": 1.0, "decide": 9.0, "cpu": 5.0}, {"train": 5.0, "validate": 1.0, "decide": 9.0, "cpu": 5.0}]
    write_jsonl(run / "decisions.jsonl", [{"num_tokens": 900, "num_validation_tokens": 100, "seconds": each} for each in seconds])
    write_json(run / "scores" / "task0.json", {"sources": {"a": {"num_rows": 30}, "b": {"num_rows": 20}}, "seconds": {"generate": 2.0}})
    write_json(run / "scores" / "task1.json", {"sources": {"a": {"num_rows": 30}}, "unscored": "its weights were others"})
    rows = [{"num_tokens": 3000, "num_validation_tokens": 200, "sample_seconds": 8.0, "learn_seconds": 9.0} for _ in range(2)]
    write_jsonl(folder / "controller" / "learning_curve.jsonl", rows)
    return folder


def test_rates_are_tokens_a_second_of_one_worker_runner_and_actor(finished):
    rates = measured_rates(finished)
    assert (rates.target_tokens_per_s, rates.proxy_tokens_per_s, rates.generated_tokens_per_s) == (100.0, 200.0, 100.0)
    assert rates.dollars_per_gpu_hour is None


def test_what_a_run_did_not_do_has_no_rate(finished):
    (finished / "controller" / "learning_curve.jsonl").unlink()
    assert measured_rates(finished).proxy_tokens_per_s is None
    (finished / "target" / "random_30" / "seed0" / "decisions.jsonl").unlink()
    with pytest.raises(UserError, match=r"--rates: .* must hold a run that tuned its target"):
        measured_rates(finished)
    with pytest.raises(UserError, match=r"--rates: .* must be the folder of a run"):
        measured_rates(finished.parent)


def test_the_command_writes_what_it_can_read_again(finished, tmp_path):
    out = tmp_path / "measured.yaml"
    command = [sys.executable, "-m", "jobs.plan", "--config", "configs/demo.yaml", "--rates", str(finished), "--write-rates", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120, env={"PATH": "", "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "not measured" not in done.stdout
    assert read_rates(out) == measured_rates(finished)
    assert set(yaml.safe_load(out.read_text())) == set(Rates.model_fields) - {"dollars_per_gpu_hour"}
