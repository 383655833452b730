"""The jobs as a person runs them: whole commands on the smoke config, their files, their exit codes, and what survives a kill."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from proxymix.account import Account
from proxymix.controllers.frozen import FrozenController
from proxymix.metrics import assert_identity

ROOT = Path(__file__).parents[1]
SMOKE = ROOT / "configs" / "smoke.yaml"
OWN_DATA = ["methods=[no_replay]", "pretraining.tokenizer=bpe"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def arguments(job, runs, *overrides, config=SMOKE):
    port = f"service.port={free_port()}"
    return [
        sys.executable,
        "-m",
        f"jobs.{job}",
        "--config",
        str(config),
        f"runs_root={runs}",
        f"cache_root={runs.parent / 'cache'}",
        port,
        *overrides,
    ]


def environment():
    return {**os.environ, "COLUMNS": "120"}


def run_job(job, runs, *overrides, config=SMOKE, timeout=400):
    return subprocess.run(
        arguments(job, runs, *overrides, config=config), capture_output=True, text=True, timeout=timeout, cwd=ROOT, env=environment(), check=False
    )


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("jobs") / "runs"


@pytest.fixture(scope="module")
def finished(runs):
    """One undisturbed pipeline."""
    result = run_job("pipeline", runs)
    assert result.returncode == 0, result.stderr
    return runs / "smoke", result


@pytest.mark.cluster
class TestPipeline:
    def test_leaves_the_whole_run_folder(self, finished):
        folder, _ = finished
        expected = [
            "config.yaml",
            "manifest.json",
            "events.jsonl",
            "base/proxy.json",
            "base/target.json",
            "mirroring.json",
            "metrics.json",
            "report.html",
        ]
        expected += ["controller/controller.safetensors", "controller/controller.json", "controller/learning_curve.jsonl"]
        assert [name for name in expected if not (folder / name).exists()] == []
        assert json.loads((folder / "manifest.json").read_text())["status"] == "finished"
        assert {"start_ray", "train_controller"} <= {row["phase"] for row in rows(folder / "events.jsonl")}
        assert yaml.safe_load((folder / "config.yaml").read_text())["tuning"]["batch_size"] == 16

    def test_the_service_decides_for_proxymix_at_every_stage(self, finished):
        folder, _ = finished
        sha256 = FrozenController.load(folder / "controller").sha256
        decisions = rows(folder / "target/proxymix/seed0/decisions.jsonl")
        assert [row["request_id"] for row in decisions] == [f"smoke/proxymix/seed0/task{k}/stage{s}" for k in range(2) for s in range(2)]
        for row in decisions:
            assert row["controller"] == {"name": "proxymix", "sha256": sha256}
            assert row["fallback"] is None
            assert sum(row["weights"].values()) == pytest.approx(1)
            for name, weight in row["weights"].items():
                assert abs(row["counts"][name] - weight * 32) <= 1

    def test_recorded_decisions_are_the_frozen_controllers_own(self, finished):
        from proxymix.types import SourceReading, StageBoundary

        folder, _ = finished
        controller = FrozenController.load(folder / "controller")
        for row in rows(folder / "target/proxymix/seed0/decisions.jsonl"):
            sources = tuple(
                SourceReading(s["name"], s["role"], tuple(s["losses"]), s["reference_loss"], s["age"], s["interval"]) for s in row["sources"]
            )
            boundary = StageBoundary(row["task_index"], row["stage_index"], row["num_stages"], sources)
            assert controller.decide(boundary).weights == pytest.approx(row["weights"], abs=1e-9)

    def test_every_method_is_scored_on_tasks_seen_and_to_come(self, finished):
        folder, _ = finished
        for method in ("proxymix", "no_replay", "random_30"):
            accuracy = json.loads((folder / f"target/{method}/seed0/accuracy.json").read_text())
            assert all(value is not None for row in accuracy["matrix"] for value in row)
            assert len(accuracy["safety"]) == 2

    def test_metrics_obey_the_identity(self, finished):
        folder, _ = finished
        methods = json.loads((folder / "metrics.json").read_text())["methods"]
        assert list(methods) == ["proxymix", "no_replay", "random_30"]
        for metrics in methods.values():
            assert_identity({name: metrics[name]["mean"] for name in ("AA", "NTA", "BWT")}, num_tasks=2)
        assert methods["proxymix"]["policy_cost"]["mean"] > 0
        assert methods["no_replay"]["replay_share"]["mean"] == 0

    def test_says_how_it_went_and_leaves_nothing_behind(self, finished):
        _, result = finished
        assert "ProxyMix" in result.stdout
        assert "Traceback" not in result.stderr

    def test_the_same_command_again_redoes_nothing(self, finished, runs):
        folder, _ = finished
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
        result = run_job("pipeline", runs, timeout=60)
        assert result.returncode == 0, result.stderr
        assert "ProxyMix" in result.stdout
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before

    def test_another_run_on_a_warm_cache_makes_nothing_twice_and_counts_the_same(self, finished, runs):
        folder, _ = finished
        result = run_job("pipeline", runs, "name=again")
        assert result.returncode == 0, result.stderr
        first, second = (json.loads((root / "metrics.json").read_text()) for root in (folder, runs / "again"))
        assert second == first | {"name": "again"}
        made, warm = (Account(root / "costs.jsonl") for root in (folder, runs / "again"))
        items = ("pretraining", "pilot", "reference", "episodes", "tuning")
        facts = [sorted((line.item, line.id, line.flops) for line in account.made(*items)) for account in (made, warm)]
        assert facts[0] == facts[1]
        assert {line.item for line in made.spent()} == set(items)
        assert {line.item for line in warm.spent()} == {"episodes", "tuning"}

    def test_killed_in_the_middle_and_started_again_ends_with_the_same_numbers(self, finished, tmp_path):
        folder, _ = finished
        killed = tmp_path / "runs"
        process = subprocess.Popen(
            arguments("pipeline", killed), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        wanted = killed / "smoke/target/no_replay/seed0/decisions.jsonl"
        deadline = time.monotonic() + 300
        while not wanted.exists():
            assert time.monotonic() < deadline, "the pipeline never got to its second target run"
            assert process.poll() is None, "the pipeline ended too early"
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        result = run_job("pipeline", killed)
        assert result.returncode == 0, result.stderr
        assert (killed / "smoke/metrics.json").read_bytes() == (folder / "metrics.json").read_bytes()
        timeless = [
            [{k: v for k, v in row.items() if k != "seconds"} for row in rows(root / "target/no_replay/seed0/decisions.jsonl")]
            for root in (folder, killed / "smoke")
        ]
        assert timeless[0] == timeless[1]

    def test_a_shut_gate_moves_to_the_declared_fallback_and_says_so(self, finished, tmp_path):
        result = run_job(
            "tune_target", tmp_path / "runs", "methods=[proxymix]", "transfer.min_rank_correlation=1.0", "transfer.fallback.replay_share=0.25"
        )
        assert result.returncode == 0, result.stderr
        for row in rows(tmp_path / "runs/smoke/target/proxymix/seed0/decisions.jsonl"):
            assert row["replay_share"] == pytest.approx(0.25)
            assert "transfer.min_rank_correlation" in row["fallback"]
        assert not (tmp_path / "runs/smoke/controller").exists()


class TestMistakes:
    """One clear message, exit code 2, nothing started, nothing half-written."""

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (["tuning.batch_sise=8"], "tuning.batch_sise"),
            (["tuning.batch_size=-1"], "tuning.batch_size"),
            (["methods=[proxymax]"], "methods.0"),
            (["resources.memory_gib=100000"], "resources.memory_gib"),
            ([*OWN_DATA, "sequence.tasks=[{name: x, format: jsonl, path: nowhere.jsonl}]"], "nowhere.jsonl"),
            (["sequence.tasks=sharp@heldout-0"], "sharp"),
        ],
    )
    def test_are_told_at_once(self, tmp_path, overrides, message):
        result = run_job("pipeline", tmp_path / "runs", *overrides, timeout=60)
        assert result.returncode == 2
        assert message in result.stderr
        assert "Traceback" not in result.stderr
        assert not (tmp_path / "runs").exists()

    def test_a_malformed_row_names_file_and_line(self, tmp_path):
        data = tmp_path / "rows.jsonl"
        data.write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a"}\n')
        result = run_job("pipeline", tmp_path / "runs", *OWN_DATA, f"sequence.tasks=[{{name: x, format: jsonl, path: {data}}}]", timeout=60)
        assert result.returncode == 2
        assert f"{data}:2" in result.stderr or (str(data) in result.stderr and "line 2" in result.stderr)

    @pytest.mark.cluster
    def test_a_port_that_is_taken_is_told_before_anything_is_learnt(self, tmp_path):
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            result = run_job("pipeline", tmp_path / "runs", f"service.port={other.getsockname()[1]}", timeout=120)
        assert result.returncode == 2
        assert "service.port" in result.stderr
        assert not (tmp_path / "runs/smoke/base").exists()

    @pytest.mark.cluster
    def test_a_service_that_does_not_answer_is_told_before_anything_is_learnt(self, tmp_path):
        result = run_job("pipeline", tmp_path / "runs", f"service.url=http://127.0.0.1:{free_port()}", "service.retries=0", timeout=120)
        assert result.returncode == 2
        assert "service.url" in result.stderr
        assert not (tmp_path / "runs/smoke/base").exists()

    @pytest.mark.cluster
    def test_too_few_cpus(self, tmp_path):
        result = run_job("pipeline", tmp_path / "runs", "resources.logical_cpus=1", timeout=120)
        assert result.returncode == 2
        assert "resources.logical_cpus" in result.stderr
