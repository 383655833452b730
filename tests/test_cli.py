"""`proxymix` before anything is sent: what a submission holds, and mistakes that need no cluster to be told."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
import yaml

from jobs.submit import Job, prepare
from proxymix.config import load_config
from proxymix.errors import UserError

ROOT = Path(__file__).parents[1]
SMOKE = ROOT / "configs" / "smoke.yaml"


def proxymix(*arguments, environment=(), cwd=ROOT):
    command = [sys.executable, "-m", "jobs.cli", *map(str, arguments)]
    variables = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {"COLUMNS": "120", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=cwd, env=variables | dict(environment), check=False)


def test_every_job_can_be_submitted():
    def is_launched(path):
        return any(isinstance(node, ast.Call) and getattr(node.func, "id", "") == "launch" for node in ast.walk(ast.parse(path.read_text())))

    assert {path.stem for path in (ROOT / "jobs").glob("*.py") if is_launched(path)} == set(Job)


def test_a_submission_means_the_same_wherever_it_is_run(tmp_path, monkeypatch):
    config = tmp_path / "mine.yaml"
    config.write_text(yaml.safe_dump(yaml.safe_load(SMOKE.read_text()) | {"proxy": {"model": {"path": "models/small"}}, "runs_root": "/shared/runs"}))
    monkeypatch.chdir(tmp_path)
    submission = prepare(Job.pipeline, config, ["seed=4", "name=there"], quick=True)
    words = submission.entrypoint.split()
    assert words[:6] == ["python", "-m", "jobs.pipeline", "--config", "config.yaml", "--quick"]
    there = load_config(config, [word.strip("'") for word in words[6:]])
    assert (there.seed, there.name, there.run_dir) == (4, "there", Path("/shared/runs/there"))
    assert (there.cache_root, there.data_root, there.proxy.model.path) == (f"{tmp_path}/runs/.cache", str(tmp_path), f"{tmp_path}/models/small")
    assert submission.folder == "/shared/runs/there"
    assert list(tmp_path.iterdir()) == [config]  # Nothing is begun here.


def test_runs_of_one_name_in_two_places_have_services_of_their_own(tmp_path):
    apps = [prepare(Job.pipeline, SMOKE, [f"runs_root={tmp_path / place}"]).app for place in ("a", "b", "a")]
    assert apps[0] == apps[2] != apps[1]


def test_variables_that_are_named_go_along_and_no_others(monkeypatch):
    monkeypatch.setenv("A_TOKEN", "sesame")
    monkeypatch.setenv("HF_TOKEN", "hf")
    plain = prepare(Job.pipeline, SMOKE, ["service.token_env=A_TOKEN"])
    assert plain.environment["A_TOKEN"] == "sesame"
    assert "HF_TOKEN" not in plain.environment
    assert "sesame" not in repr(plain) + plain.entrypoint
    asked = prepare(Job.pipeline, SMOKE, [], variables=["HF_TOKEN", "MODE=fast=1"]).environment
    assert (asked["HF_TOKEN"], asked["MODE"]) == ("hf", "fast=1")
    with pytest.raises(UserError, match="--env: 'NOT_THERE' is not set here"):
        prepare(Job.pipeline, SMOKE, [], variables=["NOT_THERE"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["submit", "pipeline", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["submit", "pipeline", "--config", SMOKE, "tuning.batch_sise=8"], "tuning.batch_sise"),
        (["submit", "pipelime", "--config", SMOKE], "pipelime"),
        (["submit", "pipeline", "--config", SMOKE, "--address", "http://127.0.0.1:9"], "no Ray cluster answers"),
        (["cluster", "status"], "none runs"),
        (["cluster", "start", "--folder", f"/tmp/{'long' * 10}"], "at most 36 characters"),
    ],
)
def test_mistakes_are_told_in_one_message(tmp_path, arguments, message):
    result = proxymix(*arguments, environment={"TMPDIR": str(tmp_path), "RAY_AUTH_TOKEN": "anything"})
    assert result.returncode == 2, result
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_only_what_a_job_is_made_of_is_sent(tmp_path):
    from cluster.submission import _pack

    _pack(tmp_path, SMOKE)
    assert {path.name for path in tmp_path.iterdir()} == {"cluster", "jobs", "proxymix", "services", "config.yaml"}
    assert list(tmp_path.rglob("__pycache__")) == []
    assert (tmp_path / "proxymix/report/report.html.j2").exists()


class FlakyServer:
    """A job server whose connections break after a few characters; the job ends after some questions."""

    def __init__(self, log, **ending):
        self.log, self.ending, self.asked = log, ending, 0

    async def tail_job_logs(self, _):
        for start in range(0, len(self.log), 4):
            if start == 8 and self.asked < 2:
                raise RuntimeError("WebSocket connection closed unexpectedly")
            yield self.log[start : start + 4]

    def get_job_info(self, _):
        from ray.job_submission import JobStatus

        self.asked += 1
        if self.asked == 1:
            raise requests.ConnectionError("reset")
        status = JobStatus.RUNNING if self.asked == 2 else JobStatus(self.ending["status"])
        return SimpleNamespace(status=status, driver_exit_code=self.ending.get("code"))

    def get_job_logs(self, _):
        return self.log


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ({"status": "SUCCEEDED", "code": 0}, 0),
        ({"status": "FAILED", "code": 2}, 2),
        ({"status": "FAILED", "code": -9}, 137),
        ({"status": "FAILED"}, 1),
        ({"status": "STOPPED"}, 130),
    ],
)
def test_a_broken_connection_loses_no_line_and_the_exit_code_is_the_jobs(monkeypatch, ending, code):
    from cluster import submission

    monkeypatch.setattr(submission, "POLL_S", 0.0)
    written = []
    assert submission.follow(FlakyServer("first line\nsecond line\nlast", **ending), "job", written.append) == code
    assert "".join(written) == "first line\nsecond line\nlast"
