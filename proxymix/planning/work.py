"""How much a run computes, and how long that takes at rates that were measured.

    Config → runs × tasks × stages × steps × rows × max_length → Work;   Work / Rates → hours of every part → cost

Rows count at their longest, so work and hours are upper bounds. Where a rate was not measured its hours are None, never a guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from pydantic import Field, ValidationError

from proxymix.cases import sequence_tasks
from proxymix.config import PROXYMIX
from proxymix.errors import UserError
from proxymix.tuning_config import Strict

if TYPE_CHECKING:
    from proxymix.config import Config

READINGS = 13 / 12
"""Validation at stage boundaries costs about a twelfth of a stage (`tuning.probes_per_boundary`)."""
REFERENCES = 2
"""Reference runs of every training case (the paired reward)."""


class Rates(Strict):
    """What was measured on the hardware that is planned with; a key that is missing leaves its hours unknown."""

    measured_by: str | None = None
    """The command and date, for whoever reads the plan."""
    target_tokens_per_s: float | None = Field(default=None, gt=0)
    """Tuning of the target on one worker. Padding is not counted, here as below: a plan has every row at its longest."""
    proxy_tokens_per_s: float | None = Field(default=None, gt=0)
    """Tuning of the proxy in one env runner."""
    generated_tokens_per_s: float | None = Field(default=None, gt=0)
    """Answers of one evaluation actor, each as if it were `evaluation.max_new_tokens` long."""
    dollars_per_gpu_hour: float | None = Field(default=None, gt=0)


@dataclass(frozen=True)
class Work:
    """Counts of a whole run; tokens are upper bounds."""

    num_tasks: int
    num_runs: int
    """Target runs: methods × seeds."""
    stages_per_run: int
    """As many decisions too: one at the start of every stage."""
    steps_per_run: int
    target_tokens: int
    num_pilots: int
    """On each side."""
    pilot_tokens: int
    """Of each side."""
    num_episodes: int
    """Proxy runs the controller is learnt in, references included."""
    proxy_tokens: int
    num_scored: int
    """Checkpoints."""
    generated_tokens: int

    @property
    def num_stages(self) -> int:
        """Of all target runs together."""
        return self.num_runs * self.stages_per_run


def work_of(config: Config) -> Work:
    """Counts for `jobs.pipeline` with this config, nothing cached."""
    tuning, curriculum, transfer = config.tuning, config.controller.curriculum, config.transfer
    tasks, anchors = len(sequence_tasks(config)), len(config.sequence.anchors)
    runs = len(config.methods) * len(config.seeds)
    task_steps = tuning.stages_per_task * tuning.steps_per_stage
    step_tokens = tuning.batch_size * tuning.max_length
    mean_tasks = curriculum.num_tasks if isinstance(curriculum.num_tasks, int) else sum(curriculum.num_tasks) / 2
    practice = mean_tasks * task_steps * sum(curriculum.length_range) / 2 * step_tokens * READINGS
    asks = PROXYMIX in config.methods
    learns = asks and config.controller.path is None and config.service.url is None
    pilots = transfer.num_sequences * transfer.num_seeds if asks else 0
    references = REFERENCES * curriculum.num_cases if config.controller.reward.kind == "paired" else 0
    episodes = config.controller.episodes + references if learns else 0
    scored = 1 + runs * tasks
    return Work(
        num_tasks=tasks,
        num_runs=runs,
        stages_per_run=tasks * tuning.stages_per_task,
        steps_per_run=tasks * task_steps,
        target_tokens=int(runs * tasks * task_steps * step_tokens * READINGS),
        num_pilots=pilots,
        pilot_tokens=int(pilots * practice),
        num_episodes=episodes,
        proxy_tokens=int(episodes * practice),
        num_scored=scored,
        generated_tokens=scored * (tasks + anchors) * config.evaluation.test_size * config.evaluation.max_new_tokens,
    )


def hours_of(config: Config, work: Work, rates: Rates) -> dict[str, float | None]:
    """Hours of every part, by name, in the order they run; scoring goes on beside tuning."""
    parallel = config.target.parallelism.num_workers
    at_once, runners = max(1, config.controller.num_env_runners), max(1, config.started_env_runners)

    def hours(tokens: int, rate: float | None, times: int) -> float | None:
        return 0.0 if tokens == 0 else None if rate is None else tokens / (rate * times) / 3600

    return {
        "pilots, proxy": hours(work.pilot_tokens, rates.proxy_tokens_per_s, at_once),
        "pilots, target": hours(work.pilot_tokens, rates.target_tokens_per_s, parallel),
        "controller": hours(work.proxy_tokens, rates.proxy_tokens_per_s, runners),
        "tuning": hours(work.target_tokens, rates.target_tokens_per_s, parallel),
        "scoring (beside tuning)": hours(work.generated_tokens, rates.generated_tokens_per_s, config.evaluation.actors),
    }


def total_hours(hours: dict[str, float | None]) -> float | None:
    """One part after the other, but for scoring, which the longer of it and tuning decides; None where a part is unknown."""
    known = [value for value in hours.values() if value is not None]
    if len(known) < len(hours):
        return None
    *before, tuning, scoring = known
    return sum(before) + max(tuning, scoring)


def read_rates(path: Path | None) -> Rates:
    """The rates in a YAML or JSON file; none without one.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    if path is None:
        return Rates()
    try:
        return Rates.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
        raise UserError(f"--rates: {str(path)!r} must be a YAML file of {', '.join(Rates.model_fields)}: {error}") from error
