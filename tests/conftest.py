"""What many tests share: one tiny base model, made once, and what is built on it."""

import pytest
import torch
from hypothesis import settings

from proxymix.cases import Case, proxy_builder, sequence_tasks
from proxymix.config import validated
from proxymix.learners import pretraining

settings.register_profile("proxymix", deadline=None, max_examples=50)  # cores are shared, so time proves nothing
settings.load_profile("proxymix")


def pytest_collection_modifyitems(items):
    """Files that start a cluster come first: two at a time (`make test`), the short ones fill what is left of the time."""
    slow = {item.path for item in items if item.get_closest_marker("cluster")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def smoke_config(tmp_path_factory):
    """A run of two builtin tasks and two anchors: 2 × 2 stages of 3 steps, nano model."""
    tree = {
        "name": "smoke",
        "seed": 3,
        "cache_root": str(tmp_path_factory.mktemp("bases")),
        "sequence": {"tasks": ["table_small@heldout-0", "roleplay@heldout-0"]},
        "pretraining": {"num_steps": 60, "batch_size": 32},
        "tuning": {"stages_per_task": 2, "steps_per_stage": 3, "batch_size": 8, "validation_size": 4},
        "controller": {"max_sources": 5, "curriculum": {"num_tasks": 2, "num_cases": 2}},
        "evaluation": {"test_size": 8},
    }
    return validated(tree, "smoke")


@pytest.fixture(scope="session")
def base_folder(smoke_config):
    """A nano Llama that has seen a little of the builtin pre-training mixture."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "BUILTIN_CORPUS", 1500)
        return pretraining.pretrain_base(smoke_config, smoke_config.proxy.model)


@pytest.fixture(scope="session")
def smoke_builder(smoke_config, base_folder):
    """Builds runs on the base model; `build` puts the one learner back to it."""
    return proxy_builder(smoke_config, base_folder)


@pytest.fixture(scope="session")
def smoke_case(smoke_config):
    """The configured sequence, the second task a little longer."""
    return Case("smoke", sequence_tasks(smoke_config), (3, 4), seed=11, reference_scores=(0.25, 0.35))
