"""`jobs.sweep_controller` as a person runs it: killed, gone on with, read again, and its best configuration trained."""

import os
import signal
import subprocess
import time

import numpy as np
import pytest
from test_jobs import ROOT, SMOKE, arguments, environment, rows, run_job

from jobs.run import Run
from jobs.sweep_controller import check_settings
from proxymix.account import Account
from proxymix.artifacts import read_json, write_json
from proxymix.config import load_config
from proxymix.controllers.frozen import FrozenController
from proxymix.errors import UserError
from proxymix.sweep_space import PBT_SPACE


def finished_rungs(folder):
    return {path: rows(path) for path in folder.glob("trainings/*/rungs.jsonl")}


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """A sweep whose driver was killed after its first rung, and the same command again."""
    runs = tmp_path_factory.mktemp("sweep") / "runs"
    folder = runs / "smoke/sweep"
    process = subprocess.Popen(
        arguments("sweep_controller", runs),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    # Not before Tune has written the rung down too: it is to be restored, not begun anew. The name of the score stands in every state.
    while not any("training_return" in path.read_text() for path in folder.glob("tune/experiment_state-*.json")):
        assert time.monotonic() < deadline, "the sweep never finished a rung"
        assert process.poll() is None, "the sweep ended too early"
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    known = finished_rungs(folder)
    curves = {path.parent: rows(path.with_name("learning_curve.jsonl")) for path in known}
    result = run_job("sweep_controller", runs)
    assert result.returncode == 0, result.stderr
    return runs, folder, known, curves, result


@pytest.mark.cluster
class TestSweep:
    def test_a_kill_loses_no_finished_rung(self, resumed):
        _, folder, known, curves, _ = resumed
        now = finished_rungs(folder)
        assert known
        for path, before in known.items():
            assert now[path][: len(before)] == before
            episodes = before[-1]["episodes"]
            done = [row for row in curves[path.parent] if (row["iteration"] + 1) * row["episodes"] <= episodes]
            # Their seconds are those of the killed session: they were not run again.
            assert rows(path.with_name("learning_curve.jsonl"))[: len(done)] == done
        assert len([path for path in (folder / "tune").iterdir() if path.is_dir()]) == 3  # The killed session's trials went on.
        trials = read_json(folder / "trials.json")["trials"]
        assert {rung["training"] for trial in trials for rung in trial["rungs"]} == {path.parent.name for path in now}

    def test_says_what_it_found(self, resumed):
        _, folder, _, _, result = resumed
        found = read_json(folder / "trials.json")
        assert len(found["trials"]) == 3
        assert {trial["status"] for trial in found["trials"]} <= {"finished", "stopped"}
        assert all(trial["flops"] > 0 for trial in found["trials"])
        assert found["cost"]["episodes"] == sum(trial["rungs"][-1]["episodes"] for trial in found["trials"])
        assert found["cost"]["reference_flops"] > 0
        assert "validation" in result.stdout
        assert "best.yaml" in result.stderr
        assert "Traceback" not in result.stderr
        assert "Search algorithm" not in result.stdout + result.stderr

    def test_a_finished_sweep_is_only_read(self, resumed):
        runs, folder, _, _, _ = resumed
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        result = run_job("sweep_controller", runs, timeout=60)
        assert result.returncode == 0, result.stderr
        assert "validation" in result.stdout
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before

    def test_other_settings_are_refused(self, resumed):
        runs = resumed[0]
        result = run_job("sweep_controller", runs, "sweep.num_trials=4", timeout=60)
        assert result.returncode == 2
        assert "sweep.num_trials" in result.stderr

    def test_train_controller_takes_the_best_configuration_and_ends_where_the_trial_did(self, resumed):
        runs, folder, _, _, _ = resumed
        result = run_job("train_controller", runs, config=folder / "best.yaml")
        assert result.returncode == 0, result.stderr
        controller = FrozenController.load(runs / "smoke-best/controller")
        found = read_json(folder / "trials.json")
        best = found["trials"][found["best"]]
        curve = rows(folder / "trainings" / best["rungs"][-1]["training"] / "learning_curve.jsonl")
        again = rows(runs / "smoke-best/controller/learning_curve.jsonl")
        assert [row["score_mean"] for row in again] == [row["score_mean"] for row in curve]
        assert controller.card["architecture"] == best["overrides"]["controller.architecture"]
        assert np.isfinite(best["rungs"][-1]["validation_score"])
        (line,) = Account(runs / "smoke-best/costs.jsonl").made("sweep_trial")
        assert (line.cached, line.episodes) == (True, found["cost"]["episodes"])
        held_out = [line.flops for line in Account(runs / "smoke/costs.jsonl").made("reference") if line.id.startswith("validation")]
        assert line.flops >= found["cost"]["flops"] + sum(held_out) > found["cost"]["flops"]


@pytest.mark.cluster
def test_a_population_as_a_person_runs_it(tmp_path):
    result = run_job("sweep_controller", tmp_path / "runs", "sweep.scheduler=pbt")
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "runs/smoke/sweep"
    found = read_json(folder / "trials.json")
    assert [(trial["status"], len(trial["rungs"])) for trial in found["trials"]] == [("finished", 2)] * 3
    assert all(trial["overrides"].keys() == PBT_SPACE.keys() for trial in found["trials"])
    # A rung that a member had done when it was told to go on from another's weights was done all the same.
    lines = Account(tmp_path / "runs/smoke/costs.jsonl").made("sweep_trial")
    assert found["cost"]["episodes"] == sum(line.episodes for line in lines) == 4 * len(lines) >= 3 * 4
    best, ppo = found["trials"][found["best"]]["overrides"], load_config(folder / "best.yaml").controller.ppo
    assert {key: getattr(ppo, key.rpartition(".")[2]) for key in best} == best
    assert "Traceback" not in result.stderr


def test_a_sweep_older_than_a_key_takes_its_default(tmp_path):
    run = Run.open(load_config(SMOKE, [f"runs_root={tmp_path}"]), "sweep_controller")
    settings = run.config.sweep.model_dump(mode="json")
    write_json(run.folder / "sweep/settings.json", {key: value for key, value in settings.items() if key != "startup_trials"})
    check_settings(run)
    write_json(run.folder / "sweep/settings.json", settings | {"max_concurrent": 99, "num_env_runners": 99})  # No result depends on them.
    check_settings(run)
    write_json(run.folder / "sweep/settings.json", settings | {"num_trials": 99})
    with pytest.raises(UserError, match=r"^sweep.num_trials: "):
        check_settings(run)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sweep.validation.worlds=[heldout-0]"], "sweep.validation"),
        (["sweep.episodes_per_rung=3"], "sweep.episodes_per_rung"),
        (["sweep.scheduler=pbt", "sweep.space={controller.architecture: {choice: [flat]}}"], "controller.architecture"),
    ],
)
def test_mistakes_are_told_before_anything_starts(tmp_path, overrides, message):
    result = run_job("sweep_controller", tmp_path / "runs", *overrides, config=SMOKE, timeout=60)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs").exists()
