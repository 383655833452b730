"""Jobs as a cluster's job server tells of them: which one is meant, one that is stopped while another works on its run, and a server gone silent."""

import asyncio
import socket
import warnings
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from ray.job_submission import JobStatus

from cluster import submission
from jobs.run import ALONE
from proxymix.errors import UserError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray Serve itself uses parts of pydantic that are deprecated.
    from jobs import take_down

APP = "proxymix-demo-0123abcd"


class Server:
    """Of one cluster; a job that is stopped ends at once, any other that is sent succeeds."""

    def __init__(self, *jobs):
        self.jobs, self.sent = list(jobs), []

    def list_jobs(self):
        return self.jobs

    def stop_job(self, job_id):
        next(job for job in self.jobs if job.submission_id == job_id).status = JobStatus.STOPPED

    def submit_job(self, *, entrypoint, **_):
        self.sent.append(entrypoint)
        return "cleaner"

    def get_job_status(self, job_id):
        return next((job.status for job in self.jobs if job.submission_id == job_id), JobStatus.SUCCEEDED)


def job(name, status, app=APP):
    metadata = None if app is None else {"run": "demo", "folder": "/shared/runs/demo", "app": app}
    return SimpleNamespace(submission_id=name, metadata=metadata, status=JobStatus(status), start_time=None)


@pytest.fixture(autouse=True)
def its_service(monkeypatch):
    """Is there, whoever left it."""
    monkeypatch.setattr(submission, "applications", lambda client: {APP})
    monkeypatch.setattr(submission, "_pack", lambda folder, config=None: None)


def test_the_service_of_a_killed_job_is_taken_down():
    server = Server(job("old", "FAILED"), job("beside", "RUNNING", APP + ALONE))
    submission.stop(server, submission.find(server, "old"))
    assert server.sent == [f"python -m jobs.take_down {APP} /shared/runs/demo"]


def test_the_service_of_its_successor_is_not():
    server = Server(job("old", "FAILED"), job("new", "RUNNING"))
    with pytest.raises(UserError, match="job old: it has ended, and the service is that of job new"):
        submission.stop(server, submission.find(server, "old"))
    assert server.sent == []
    submission.stop(server, submission.find(server, "demo"))
    assert [one.status for one in server.jobs] == [JobStatus.FAILED, JobStatus.STOPPED]


def test_nor_that_of_a_job_which_nobody_submitted(tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(take_down.ray, "init", lambda **_: None)
    monkeypatch.setattr(take_down, "undeploy", taken.append)

    def refuse(folder):  # A process cannot be in its own way.
        raise UserError("another job works on it")

    take_down.take_down(APP, tmp_path / "gone")
    assert not (tmp_path / "gone").exists()
    take_down.take_down(APP, tmp_path)
    assert (tmp_path / ".lock").exists()
    monkeypatch.setattr(take_down, "lock", refuse)
    take_down.take_down(APP + ALONE, tmp_path)
    assert taken == [APP, APP, APP + ALONE]
    with pytest.raises(UserError, match="another job works on it"):
        take_down.take_down(APP, tmp_path)


def test_a_job_is_sent_beside_one_whose_service_is_another(tmp_path):
    config = tmp_path / "config.yaml"
    server = Server(job("pipeline", "RUNNING"), job("serving", "RUNNING", APP + ALONE))
    for name, app, refused in (("report", APP + ALONE, False), ("serve_controller", APP + ALONE, True), ("evaluate", APP, True)):
        sent = submission.Submission(name, "demo", "/shared/runs/demo", app, config)
        with pytest.raises(UserError, match="works on run '/shared/runs/demo' now") if refused else nullcontext():
            submission.submit(server, sent)
    del server.jobs[1]
    submission.submit(server, submission.Submission("serve_controller", "demo", "/shared/runs/demo", APP + ALONE, config))
    assert [entry.split()[2] for entry in server.sent] == ["jobs.report", "jobs.serve_controller"]


def test_jobs_that_rays_own_command_sent_are_found_and_stopped_too():
    server = Server(job("raysubmit_1", "RUNNING", app=None))
    submission.stop(server, submission.find(server, "raysubmit_1"))
    assert server.get_job_status("raysubmit_1") == JobStatus.STOPPED
    assert server.sent == []


class Silent:
    """Its log says one line and then nothing, on a connection that stands; in between it answers with a fault, or not at all."""

    def __init__(self, *answers):
        self.answers = list(answers)

    async def tail_job_logs(self, _):
        yield "line\n"
        await asyncio.Event().wait()

    def get_job_info(self, _):
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(status=JobStatus(answer), driver_exit_code=0)

    def get_job_logs(self, _):
        return "line\nlast\n"


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(submission, "ANSWER_S", 0.01)
    monkeypatch.setattr(submission, "POLL_S", 0.0)


FAULT = RuntimeError("Request failed with status code 500")


def test_a_log_that_falls_silent_is_asked_for_again(quick):
    written = []
    assert submission.follow(Silent("RUNNING", FAULT, "RUNNING", "SUCCEEDED"), "job", written.append) == 0
    assert "".join(written) == "line\nlast\n"


@pytest.mark.parametrize("fault", [FAULT, submission.requests.ReadTimeout("no answer"), ConnectionError("reset")])
def test_a_cluster_that_stays_silent_is_given_up(quick, fault):
    with pytest.raises(UserError, match=f"job job: the cluster has not answered for 0 s .{fault}.; the job may go on"):
        submission.follow(Silent("RUNNING", fault), "job", lambda text: None, silence_s=0.05)


def test_no_answer_is_waited_for_for_ever(quick):
    with socket.create_server(("127.0.0.1", 0)) as mute, pytest.raises(UserError, match="no Ray cluster answers"), submission.told():
        submission.Client(f"http://127.0.0.1:{mute.getsockname()[1]}")
