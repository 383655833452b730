"""Reference runs for the paired reward: what simple schedules reach on the very cases a controller is trained on.

cases → ramp_10 and random_20 on the proxy, a Ray task a case → J per case, kept in `references.json` → cases with reference scores
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray

from cluster.tasks import kept_builder, run_tasks
from proxymix.artifacts import read_json, write_json
from proxymix.cases import Case, proxy_builder
from proxymix.config import Config
from proxymix.continual import run_continual
from proxymix.controllers.baselines import baseline
from proxymix.reward import final_score

REFERENCES = ("ramp_10", "random_20")
"""Two, because the mean of two is a steadier yardstick than either."""


@dataclass(frozen=True)
class References:
    """Cases that know what simple schedules reach on them, and what finding out cost."""

    cases: tuple[Case, ...]
    num_tokens: int = 0
    """Trained on, over all reference runs."""
    num_validation_tokens: int = 0


def with_references(
    config: Config, base_folder: str, cases: Sequence[Case], out: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> References:
    """`cases` with J of the reference controllers; as they are when the reward does not need them.

    Runs as many cases at a time as there are env runners. Finished ones are kept in `out/references.json`, keyed by all that decides them.
    """
    if config.controller.reward.kind != "paired":
        return References(tuple(cases))
    path = out / "references.json"
    known: dict[str, dict[str, Any]] = read_json(path) or {}
    keys = [_key(config, base_folder, case) for case in cases]
    missing = [(key, case) for key, case in zip(keys, cases, strict=True) if key not in known]

    def keep(index: int, answer: dict[str, Any]) -> None:
        known[missing[index][0]] = answer
        write_json(path, known)

    submissions = [partial(_reference_runs.remote, config, base_folder, case) for _, case in missing]
    run_tasks(submissions, max(1, config.controller.num_env_runners), progress, keep)
    return References(
        tuple(replace(case, reference_scores=tuple(known[key]["scores"])) for key, case in zip(keys, cases, strict=True)),
        sum(known[key]["num_tokens"] for key in keys),
        sum(known[key]["num_validation_tokens"] for key in keys),
    )


@ray.remote(num_cpus=1, max_retries=3)
def _reference_runs(config: Config, base_folder: str, case: Case) -> dict[str, Any]:
    """J of each reference controller, and the tokens they took."""
    builder = kept_builder(proxy_builder, config.model_dump_json(), base_folder)
    scores, records = [], []
    for method in REFERENCES:
        run = builder.build(case)
        records += run_continual(run, baseline(method))
        scores.append(final_score(run.validation_accuracies()))
    return {
        "scores": scores,
        "num_tokens": sum(record.num_tokens for record in records),
        "num_validation_tokens": sum(record.num_validation_tokens for record in records),
    }


def proxy_facts(config: Config, base_folder: str) -> dict[str, Any]:
    """All of a configuration that a proxy run's numbers depend on; the case and the controller come on top.

    A preset's folder is named by its content's hash.
    """
    tree = config.model_dump(mode="json", include={"seed", "data_root", "tuning", "proxy"})
    anchors = [anchor.model_dump(mode="json") for anchor in config.sequence.anchors]
    return tree | {"anchors": anchors, "test_size": config.evaluation.test_size, "base": Path(base_folder).name}


def _key(config: Config, base_folder: str, case: Case) -> str:
    """The case's name for a reader, the hash of all that its scores depend on for the program."""
    facts = json.dumps([proxy_facts(config, base_folder), repr(replace(case, reference_scores=()))], sort_keys=True)
    return f"{case.name}-{hashlib.sha256(facts.encode()).hexdigest()[:16]}"
