"""A checkpoint whose weights could not be verified gets another chance each time its job is run: the fault may have been a machine's."""

import shutil
import warnings

import pytest
from test_evaluation_pool import cluster, config_with, models, put_checkpoint, sources

from proxymix.artifacts import read_json, target_folder, write_json
from proxymix.evaluation.scoring import score_path

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray itself uses what is deprecated.
    from cluster.evaluation import EvaluationPool

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")]
__all__ = ["cluster", "models", "sources"]

PLACES = {"good": (0, 0), "wrong": (0, 1), "broken": (1, 0), "gone": (1, 1)}
"""Seed and task of each checkpoint."""
BEFORE = {"unscored": "as of an earlier day"}


def test_what_was_left_unscored_is_tried_once_more(cluster, models, sources, tmp_path):
    folders = {name: put_checkpoint(models, "short", tmp_path, task, ("random_30", seed)) for name, (seed, task) in PLACES.items()}
    (folders["wrong"] / "fingerprint.json").unlink()
    shutil.copy(models / "long" / "fingerprint.json", folders["wrong"])
    (folders["broken"] / "model.safetensors").unlink()
    shutil.rmtree(folders["gone"])
    paths = {name: score_path(target_folder(tmp_path, "random_30", seed), task) for name, (seed, task) in PLACES.items()}
    for path in paths.values():
        write_json(path, BEFORE)
    with EvaluationPool(config_with("transformers"), str(models / "base"), sources) as pool:
        pool.start(tmp_path, [("random_30", seed) for seed in (0, 1)])
        pool.finish(stall_timeout_s=120)
    found = {name: read_json(path) for name, path in paths.items()}
    assert "unscored" not in found["good"]
    assert found["good"]["weights"]["verified"]
    assert "more than 0.01" in found["wrong"]["unscored"]
    assert found["broken"] == found["gone"] == BEFORE
