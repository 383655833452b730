"""The pool of evaluation actors on a real Ray: two engines that agree, checkpoints that appear late, actors that die."""

import os
import shutil
import signal
import time
import warnings
from unittest.mock import Mock

import pytest
import torch
from own_ray import own_ray

from proxymix.artifacts import read_json, target_folder, write_folder
from proxymix.cases import load_sources
from proxymix.config import Config
from proxymix.data.encoding import encode_split, prompt_ids
from proxymix.errors import UserError
from proxymix.evaluation.scoring import base_score_path, score_path
from proxymix.evaluation.verification import TOLERANCE, Fingerprint
from proxymix.learners.decoder import LeanLlama
from proxymix.learners.learner import Learner
from proxymix.learners.models import load_tokenizer, save_model
from proxymix.learners.pretraining import build_tokenizer, llama_config
from proxymix.telemetry import REBUILT_ENGINES

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray itself uses what is deprecated.
    import ray

    from cluster.evaluation import EvaluationPool
    from cluster.evaluation_actor import ENVIRONMENT, EvaluationActor

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")]

RUN = ("random_30", 0)


def config_with(engine, actors=1, **evaluation):
    return Config.model_validate(
        {
            "name": "pool",
            "sequence": {"tasks": ["table_small@heldout-0", "reformat@heldout-0"]},
            "evaluation": {"engine": engine, "actors": actors, "test_size": 24, "kv_cache_mib": 16, **evaluation},
            "tuning": {"learning_rate": 5e-3},
        }
    )


CONFIG = config_with("transformers")


@pytest.fixture(scope="module")
def cluster():
    with own_ray(4):
        yield


@pytest.fixture(scope="module")
def sources():
    return load_sources(CONFIG)


@pytest.fixture(scope="module")
def models(tmp_path_factory, sources):
    """Folders of an untuned model and of two that were tuned, for two lengths, on half of the very rows they are asked."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = build_tokenizer(CONFIG, ())
    network = LeanLlama(llama_config("nano", tokenizer, 64))
    network.initialise(torch.Generator().manual_seed(0))
    learner = Learner(network, CONFIG.tuning)
    rows = encode_split([row for source in sources for row in source.test[::2]], tokenizer, 64).batch()
    (root / "base").mkdir()
    tokenizer.save_pretrained(root / "base")
    network.save(root / "base")
    learner.begin_task(120)
    for name in ("short", "long"):
        for _ in range(60):
            learner.train_step(rows)
        (root / name).mkdir()
        save_model(network, root / "base", root / name)
        Fingerprint.of(learner, [encode_split(source.test, tokenizer, 64) for source in sources]).write(root / name)
    return root


def put_checkpoint(models, name, run_dir, index, run=RUN):
    content = models / name
    folder = target_folder(run_dir, *run) / "checkpoints" / f"task{index}"
    write_folder(folder, lambda new: [os.link(file, new / file.name) for file in content.iterdir()])
    return folder


def teacher_forced(models, name, sources):
    tokenizer = load_tokenizer(models / "base")
    learner = Learner(LeanLlama.load(models / name), CONFIG.tuning)
    right = learner.accuracies({source.name: encode_split(source.test, tokenizer, 64) for source in sources})
    return {name: float(rows.double().mean()) for name, rows in right.items()}


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_scores_are_those_of_the_learner(cluster, models, sources, tmp_path, engine):
    constructed = time.monotonic()
    with EvaluationPool(config_with(engine), str(models / "base"), sources) as pool:
        assert time.monotonic() - constructed < 2.0  # The engine loads in the background.
        put_checkpoint(models, "short", tmp_path, 0)
        pool.start(tmp_path, [RUN])
        put_checkpoint(models, "long", tmp_path, 1)
        seen = []
        pool.finish(lambda done, total: seen.append((done, total)), stall_timeout_s=120)
    assert seen[-1] == (3, 3)
    folder = target_folder(tmp_path, *RUN)
    for name, path, label in (
        ("base", base_score_path(tmp_path), "base"),
        ("short", score_path(folder, 0), "task0"),
        ("long", score_path(folder, 1), "task1"),
    ):
        score, expected = read_json(path), teacher_forced(models, name, sources)
        assert score["checkpoint"] == label
        assert set(score["seconds"]) == {"reload", "generate"}
        assert (score["weights"]["verified"], score["weights"]["rebuilt"]) == (name != "base", False)
        for source in sources:
            if source.scorer == "exact_match":
                assert score["sources"][source.name] == {"accuracy": expected[source.name], "num_rows": len(source.test), "num_unscored": 0}
        assert score["safety"]["num_unscored"] <= 24
    assert any(0 < value < 1 for value in expected.values())  # Else equality says little.


@ray.remote
def tokens_of_both_engines(base, checkpoint, perturbed, config, prompts):
    from cluster.vllm_engine import VllmGenerator
    from proxymix.evaluation.generation import TransformersGenerator

    tokenizer, answers, seconds = load_tokenizer(base), [], []
    for engine in (VllmGenerator, TransformersGenerator):
        generator = engine(base, config, tokenizer)
        before = generator.generate(prompts)
        started = time.perf_counter()
        generator.load(checkpoint)
        seconds.append(time.perf_counter() - started)
        after = generator.generate(prompts)
        fingerprint = Fingerprint.read(checkpoint)
        assert fingerprint.difference(generator) < TOLERANCE["fp32"] / 100
        generator.load(perturbed)
        assert fingerprint.difference(generator) > TOLERANCE["fp32"]
        generator.load(base)
        assert fingerprint.difference(generator) > TOLERANCE["fp32"]
        assert generator.generate(prompts) == before
        answers.append((before, after))
    return answers, seconds


def test_vllm_gives_transformers_tokens_before_and_after_a_reload(cluster, models, sources, tmp_path):
    """Tied output layers are the trap: vLLM's own reload left the old one in place on CPU."""
    network = LeanLlama.load(models / "long")
    with torch.no_grad():
        next(iter(network.parameters())).add_(0.02)
    save_model(network, models / "base", tmp_path)
    tokenizer = load_tokenizer(models / "base")
    prompts = [prompt_ids(row.prompt, tokenizer) for source in sources for row in source.test]
    remote = tokens_of_both_engines.options(runtime_env={"env_vars": {**ENVIRONMENT, "HF_HUB_OFFLINE": "1"}})
    folders = (str(models / "base"), str(models / "long"), str(tmp_path))
    (vllm, transformers), _ = ray.get(remote.remote(*folders, CONFIG, prompts), timeout=400)
    assert vllm == transformers
    assert vllm[0] != vllm[1]


def test_a_stale_engine_is_rebuilt_and_a_wrong_checkpoint_kept_unscored(cluster, models, sources, tmp_path, monkeypatch):
    class StaleActor(EvaluationActor):  # In here, or Ray would have its workers import this file.
        """One whose engine, once it is there, takes no other weights."""

        def _build(self, folder):
            generator = super()._build(folder)
            generator.load = lambda folder: None
            return generator

    monkeypatch.setattr("cluster.evaluation.EvaluationActor", StaleActor)
    put_checkpoint(models, "short", tmp_path, 0)
    wrong = put_checkpoint(models, "short", tmp_path, 1)
    (wrong / "fingerprint.json").unlink()
    shutil.copy(models / "long" / "fingerprint.json", wrong)
    config = config_with("transformers", keep_checkpoints="last")
    with EvaluationPool(config, str(models / "base"), sources) as pool:
        counted = []
        monkeypatch.setattr(pool._telemetry, "record", lambda metric, value, **tags: counted.append(value) if metric is REBUILT_ENGINES else None)
        pool.start(tmp_path, [RUN])
        pool.finish(stall_timeout_s=120)
    first, second = (read_json(score_path(target_folder(tmp_path, *RUN), index)) for index in (0, 1))
    expected = teacher_forced(models, "short", sources)
    assert {name: row["accuracy"] for name, row in first["sources"].items() if name in exact(sources)} == {
        name: expected[name] for name in exact(sources)
    }
    assert (first["weights"]["verified"], first["weights"]["rebuilt"]) == (True, True)
    assert "more than 0.01" in second["unscored"]
    assert all(row["accuracy"] is None for row in second["sources"].values())
    assert wrong.exists()
    assert sum(counted) == 2


def exact(sources):
    return [source.name for source in sources if source.scorer == "exact_match"]


def test_a_killed_actor_loses_nothing(cluster, models, sources, tmp_path):
    with EvaluationPool(config_with("transformers", actors=2), str(models / "base"), sources) as pool:
        runs = [("random_30", seed) for seed in range(3)]
        for run in runs:
            put_checkpoint(models, "short", tmp_path, 0, run)
        pool.start(tmp_path, runs)
        while not base_score_path(tmp_path).exists():
            time.sleep(0.02)
        os.kill(int(read_json(base_score_path(tmp_path))["actor"].partition("/")[2]), signal.SIGKILL)
        for run in runs:
            put_checkpoint(models, "long", tmp_path, 1, run)
        pool.finish(stall_timeout_s=120)
    scores = [[read_json(score_path(target_folder(tmp_path, *run), index)) for run in runs] for index in (0, 1)]
    for same in scores:
        assert all(score["sources"] == same[0]["sources"] for score in same)
    wait_for_free_cpus(4)


def test_a_broken_checkpoint_is_told_and_the_others_are_scored(cluster, models, sources, tmp_path):
    broken = put_checkpoint(models, "short", tmp_path, 0)
    (broken / "model.safetensors").unlink()
    put_checkpoint(models, "long", tmp_path, 1)
    with EvaluationPool(CONFIG, str(models / "base"), sources) as pool:
        pool.start(tmp_path, [RUN])
        with pytest.raises(UserError, match=r"could not score '.*task0' in 3 attempts"):
            pool.finish(stall_timeout_s=120)
    folder = target_folder(tmp_path, *RUN)
    assert not score_path(folder, 0).exists()
    assert score_path(folder, 1).exists()


def test_scored_checkpoints_go_when_only_the_last_is_kept(cluster, models, sources, tmp_path):
    first, last = (put_checkpoint(models, name, tmp_path, index) for index, name in enumerate(("short", "long")))
    config = config_with("transformers", keep_checkpoints="last")
    with EvaluationPool(config, str(models / "base"), sources) as pool:
        pool.start(tmp_path, [RUN])
        pool.finish(stall_timeout_s=120)
    assert not first.exists()
    assert last.exists()
    before = score_path(target_folder(tmp_path, *RUN), 0).read_text()
    with EvaluationPool(config, str(models / "base"), sources) as pool:
        pool.start(tmp_path, [RUN])
        pool.finish(stall_timeout_s=120)  # A second time: nothing to do, nothing missed.
    assert score_path(target_folder(tmp_path, *RUN), 0).read_text() == before


def test_what_cannot_be_scored_is_told_before_any_actor_starts(cluster, models, sources, tmp_path):
    wait_for_free_cpus(4)
    with pytest.raises(UserError, match="cannot load the tokenizer of the model"):
        EvaluationPool(CONFIG, str(tmp_path / "nowhere"), sources)
    with pytest.raises(UserError, match=r"evaluation.max_new_tokens: must hold the longest test answer of general"):
        EvaluationPool(config_with("transformers", max_new_tokens=2), str(models / "base"), sources)
    assert ray.available_resources()["CPU"] == 4


def test_a_fault_can_be_read_while_tuning_goes_on(cluster, models, sources, tmp_path, monkeypatch):
    with EvaluationPool(CONFIG, str(models / "base"), sources) as pool:
        pool.check()
        monkeypatch.setattr(pool, "_collect", Mock(side_effect=UserError("evaluation.engine: vllm cannot be imported")))
        pool.start(tmp_path, [RUN])
        pool._thread.join(10)
        with pytest.raises(UserError, match="vllm cannot be imported"):
            pool.check()
        with pytest.raises(UserError, match="vllm cannot be imported"):
            pool.finish()
    wait_for_free_cpus(4)


def wait_for_free_cpus(number):
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU", 0) != number:
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.1)


@ray.remote(num_cpus=4)
def hold_all_cpus():
    time.sleep(600)


def test_a_standstill_is_told(cluster, models, sources, tmp_path):
    reference = hold_all_cpus.remote()
    wait_for_free_cpus(0)
    try:
        with EvaluationPool(CONFIG, str(models / "base"), sources) as pool:
            pool.start(tmp_path, [RUN])
            with pytest.raises(UserError, match="no score came for 1 s, 1 to go, next base"):
                pool.finish(stall_timeout_s=1.0)
    finally:
        ray.cancel(reference, force=True)
