"""A run folder that no model was tuned for: seeded skills that grow when a source is drawn and fade when it is not.

build_fake_run(folder, seed) → every file of a finished run, in the formats the pipeline writes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from proxymix.account import Account, Cost
from proxymix.artifacts import read_jsonl, write_json, write_jsonl, write_text
from proxymix.config import Config, validated
from proxymix.controllers.baselines import baseline
from proxymix.metrics import relative_forgetting
from proxymix.summary import summarise
from proxymix.types import SourceReading, StageBoundary

TASKS = ["table_small", "reverse", "modular", "lexicon", "roleplay"]
ANCHORS = ["safety", "general"]
METHODS = ["proxymix", "no_replay", "random_10", "random_30", "random_50", "ramp_10"]
STAGES, STEPS, BATCH = 4, 12, 16


def build_fake_run(folder: Path, *, seed: int = 0, seeds: tuple[int, ...] = (0, 1, 2), methods: list[str] | None = None) -> Config:
    """Fills `folder` and returns the run's config."""
    tree = {
        "name": "fake",
        "seeds": list(seeds),
        "methods": methods or METHODS,
        "sequence": {"tasks": "long@heldout-0"},
        "runs_root": str(folder.parent),
    }
    config = validated(tree, "fake")
    write_text(folder / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    write_json(
        folder / "manifest.json",
        {"versions": {"torch": "2.13.0"}, "git_revision": "0123456789abcdef", "seed": 0, "hardware": {"cores": 2}, "status": "running"},
    )
    for name, size in (("proxy", 32_448), ("target", 110_208)):
        write_json(folder / "base" / f"{name}.json", {"num_parameters": size, "folder": f"base/{name}"})
    for method in config.methods:
        for k in seeds:
            _write_target_run(folder / "target" / method / f"seed{k}", method, k, np.random.default_rng([seed, k, len(method)]))
    _write_controller(folder / "controller", np.random.default_rng([seed, 99]))
    _write_account(folder, config)
    write_json(folder / "mirroring.json", _mirroring(np.random.default_rng([seed, 77])))
    write_jsonl(folder / "events.jsonl", _events(config))
    write_json(folder / "metrics.json", summarise(config, folder))
    return config


def _write_target_run(folder: Path, method: str, seed: int, rng: np.random.Generator) -> None:
    skill = {**dict.fromkeys(ANCHORS, 0.9), **dict.fromkeys(TASKS, 0.05)}
    losses: dict[str, list[float]] = {}
    reference = {name: _loss(0.9, rng) for name in ANCHORS}
    rows: list[dict[str, Any]] = []
    matrix, anchors, safety = [], {name: [] for name in ANCHORS}, []
    for task_index, task in enumerate(TASKS):
        visible = [*ANCHORS, *TASKS[: task_index + 1]]
        for stage in range(STAGES):
            for name in visible:
                losses.setdefault(name, []).append(_loss(skill[name], rng))
            sources = [SourceReading(n, _role(n, task), tuple(losses[n]), None if n == task else reference[n]) for n in visible]
            boundary = StageBoundary(task_index, stage, STAGES, tuple(sources))
            rows.append(_row(boundary, method, seed, rng))
            _tune(skill, rows[-1]["weights"], task)
        reference[task] = _loss(skill[task], rng)
        matrix.append([_accuracy(skill[name], rng) if i <= task_index + 1 else None for i, name in enumerate(TASKS)])
        for name in ANCHORS:
            anchors[name].append(_accuracy(skill[name], rng))
        safety.append(_safety(skill["safety"], rng))
    base = {**{name: _accuracy(0.9, rng) for name in ANCHORS}, **{name: _accuracy(0.05, rng) for name in TASKS}}
    write_jsonl(folder / "decisions.jsonl", rows)
    report = {"method": method, "seed": seed, "tasks": TASKS, "anchors": ANCHORS, "base": base, "matrix": matrix}
    write_json(folder / "accuracy.json", report | {"anchor_accuracy": anchors, "safety": safety, "base_safety": _safety(0.9, rng)})


def _role(name: str, current: str) -> Any:
    return "current" if name == current else "anchor" if name in ANCHORS else "past"


def _row(boundary: StageBoundary, method: str, seed: int, rng: np.random.Generator) -> dict[str, Any]:
    names, current = boundary.names, boundary.current.name
    fallback = "controller away: timeout" if method == "proxymix" and seed == 1 and (boundary.task_index, boundary.stage_index) == (2, 1) else None
    if method == "proxymix" and not fallback:
        rise = {s.name: max(0.05, s.losses[-1] - (s.reference_loss or 0)) for s in boundary.sources if s.role != "current"}
        share = 0.4 + 0.12 * boundary.stage_index + 0.05 * rng.random()
        weights = {name: share * value / sum(rise.values()) for name, value in rise.items()} | {current: 1 - share}
    else:
        weights = dict((baseline("random_30") if fallback else baseline(method)).decide(boundary).weights)
    counts = {name: round(weights[name] * STEPS * BATCH) for name in names}
    counts[current] += STEPS * BATCH - sum(counts.values())
    return {
        "request_id": f"{method}/seed{seed}/task{boundary.task_index}/stage{boundary.stage_index}",
        "task_index": boundary.task_index,
        "stage_index": boundary.stage_index,
        "num_stages": STAGES,
        "sources": [{"name": s.name, "role": s.role, "losses": list(s.losses), "reference_loss": s.reference_loss} for s in boundary.sources],
        "weights": {name: weights[name] for name in names},
        "replay_share": 1 - weights[current],
        "controller": {"name": method, "sha256": "ab" * 32 if method == "proxymix" else None},
        "fallback": fallback,
        "counts": counts,
        "training_loss": 0.5,
        "num_optimizer_steps": STEPS,
        "num_tokens": 2000 + int(rng.integers(50)),
        "seconds": {"train": 0.4 + 0.1 * rng.random(), "validate": 0.09, "decide": 0.02 if method == "proxymix" else 0.0},
    }


def _tune(skill: dict[str, float], weights: dict[str, float], current: str) -> None:
    for name, value in skill.items():
        drawn = weights.get(name, 0.0)
        fade = 0.15 * np.exp(-18 * drawn) * (1.6 if name == "safety" and current == "roleplay" else 1)
        skill[name] = value + (0.97 - value) * (1 - np.exp(-1.1 * drawn)) - fade * max(value - 0.05, 0) * (name in ANCHORS or name != current)


def _loss(skill: float, rng: np.random.Generator) -> float:
    return float(3.2 * np.exp(-3.2 * skill) * np.exp(0.06 * rng.normal()))


def _accuracy(skill: float, rng: np.random.Generator) -> float:
    return float(rng.binomial(64, np.clip(skill, 0, 1)) / 64)


def _safety(skill: float, rng: np.random.Generator) -> dict[str, Any]:
    refused, complied = _accuracy(skill, rng), _accuracy(0.5 + skill / 2, rng)
    return {
        "refusal_accuracy": refused,
        "benign_compliance": complied,
        "balanced": (refused + complied) / 2,
        "selectivity": refused - (1 - complied),
        "num_unscored": 0,
    }


def _write_controller(folder: Path, rng: np.random.Generator) -> None:
    write_json(folder / "controller.json", {"name": "proxymix", "training_flops": 1.4 * 6 * 110_208 * 40_500, "training_cost": {"episodes": 320}})
    rows = []
    for iteration in range(20):
        reference = 0.78 + 0.03 * rng.normal()
        gain = 0.02 * (1 - np.exp(-iteration / 6)) - 0.008
        score = reference + gain + 0.003 * rng.normal()
        rows.append(
            {
                "iteration": iteration,
                "episodes": 16,
                "case": f"case{iteration}",
                "score_mean": score,
                "score_sd": 0.018 * np.exp(-iteration / 25),
                "reference_mean": reference,
                "reward_mean": (score - reference) / 0.02,
                "replay_share_mean": 0.5 - 0.008 * iteration + 0.02 * rng.normal(),
                "sample_seconds": 9.0,
                "learn_seconds": 1.1,
            }
        )
    write_jsonl(folder / "learning_curve.jsonl", rows)


def _write_account(folder: Path, config: Config) -> None:
    account = Account(folder / "costs.jsonl")
    account.add("pretraining", "nano-0123", "proxy", Cost(10**12, 20.0), cached=True)
    for seed in (0, 1):
        for model in ("proxy", "target"):
            account.add("pilot", f"pilot0/seed{seed}/{model}", model, Cost(2 * 10**9, 4.0))
    account.add("reference", "case0", "proxy", Cost(3 * 10**9, 1.5), cached=True, episodes=2)
    for iteration in range(20):
        account.add("episodes", f"iteration{iteration}", "proxy", Cost(10**9, 9.0), episodes=16)
    for method in config.methods:
        for seed in config.seeds:
            for row in read_jsonl(folder / f"target/{method}/seed{seed}/decisions.jsonl"):
                cost = Cost(6 * 110_208 * row["num_tokens"], 0.5)
                account.add("tuning", f"{method}/seed{seed}/task{row['task_index']}/stage{row['stage_index']}", "target", cost)


def _mirroring(rng: np.random.Generator) -> dict[str, Any]:
    pilots = []
    for sequence in ("mirror0", "mirror1", "mirror2"):
        for seed in (0, 1):
            fade = rng.uniform(0.03, 0.5, size=5)
            pair = []
            for noise in (0.03, 0.03):
                gap = np.arange(5)[:, None] - np.arange(5)[None, :]
                pair.append(relative_forgetting(np.clip(0.9 * (1 - fade) ** np.maximum(gap, 0) + noise * rng.normal(size=(5, 5)), 0, 1)))
            proxy, target = pair
            names = [TASKS[int(i)] for i in proxy[:, 1]]
            pilots.append(
                {
                    "sequence": sequence,
                    "seed": seed,
                    "proxy": proxy[:, 2].tolist(),
                    "target": target[:, 2].tolist(),
                    "gaps": proxy[:, 0].tolist(),
                    "tasks": names,
                }
            )
    verdict = {"rho": 0.84, "interval": [0.71, 0.92], "p_value": 0.0005, "ceiling": 0.91, "partial_rho": 0.66, "passed": True, "reasons": []}
    return verdict | {"per_sequence": {"mirror0": 0.88, "mirror1": 0.79, "mirror2": 0.85}, "pilots": pilots}


def _events(config: Config) -> list[dict[str, Any]]:
    rows, clock = [], 1_800_000_000.0
    tunings = [("tune_target", 31.0), ("evaluate", 14.0)] * len(config.methods)
    for phase, seconds in [("pretrain_base", 74.0), ("check_mirroring", 41.0), ("train_controller", 214.0), ("serve_controller", 8.0), *tunings]:
        rows.append({"time": clock, "phase": phase, "event": "start"})
        clock += seconds
        rows.append({"time": clock, "phase": phase, "event": "end", "seconds": seconds})
    rows.append({"time": clock, "phase": "start_engines", "event": "end", "seconds": 12.0})
    return [*rows, {"time": clock, "phase": "report", "event": "start"}]
