"""Names for results of continual runs: the hash of all that decides their numbers, so that any run may use them.

(config, model, case, rule, code) → case_key → <cache_root>/{pilots,references}/<key>.json
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from proxymix.cases import Case
from proxymix.config import Config, ModelConfig
from proxymix.data.fingerprints import code_hash, content_key, file_facts, source_facts

CODE = (
    "data",
    "learners",
    "controllers",
    "evaluation/exactness.py",
    "observation.py",
    "feature_groups.py",
    "episode.py",
    "probing.py",
    "cases.py",
    "continual.py",
    "cost.py",
    "metrics.py",
    "mixture.py",
    "reward.py",
    "types.py",
)
"""What a run's numbers are computed by."""


def case_key(config: Config, role: Literal["proxy", "target"], base_folder: str, case: Case, rule: Any) -> str:
    """Of one model's run of `case` from the base in `base_folder`, steered by `rule` (a JSON value)."""
    model = (
        config.proxy.facts()
        if role == "proxy"
        else config.target.model_dump(mode="json", exclude={"model": True, "checkpoints": True, "parallelism": {"num_workers", "threads_per_worker"}})
    )
    facts = {
        "model": [getattr(config, role).model.implementation, model, _base_facts(getattr(config, role).model, base_folder)],
        "tuning": [config.tuning.model_dump(mode="json"), config.tuning.probe_budget],
        "seed": config.seed,
        "sources": [source_facts(config, spec) for spec in (*config.sequence.anchors, *case.tasks)],
        "case": [case.steps_per_stage, case.seed],
        "rule": rule,
        "code": [code_hash(*CODE), *(version(package) for package in ("torch", "transformers", "peft"))],
    }
    return content_key(facts)


def _base_facts(model: ModelConfig, folder: str) -> Any:
    """A preset's folder is named by its content; other folders are known by their files, a hub name is taken at its word."""
    if model.preset is not None:
        return Path(folder).name
    return file_facts(Path(folder).iterdir()) if Path(folder).is_dir() else folder
