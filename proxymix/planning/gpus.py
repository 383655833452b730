"""Who holds which GPUs, and when.

evaluation actors ───────────────────── from the start to the end ─────────────────────
proxies (pilots, references, env runners, guard) ─ then, on the same GPUs ─ the target's workers
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from proxymix.config import Config


@dataclass(frozen=True)
class GpuNeeds:
    """Whole GPUs, by who holds them."""

    scoring: int
    """By the evaluation actors, which start early and keep theirs."""
    learning: int
    """By the processes that tune proxies."""
    tuning: int
    """By the target's workers."""

    @property
    def total(self) -> int:
        """At the most at a time: learning is over before tuning begins."""
        return self.scoring + max(self.learning, self.tuning)


def gpu_needs(config: Config) -> GpuNeeds:
    """Of a whole run. Pilots, references and the like are as many at a time as there are env runners, or wait for each other."""
    target, proxy = config.target.parallelism, config.proxy
    learning = math.ceil(max(1, config.started_env_runners) / proxies_on_a_gpu(config)) if proxy.use_gpu else 0
    return GpuNeeds(config.evaluation.gpus * target.use_gpu, learning, target.num_workers * target.use_gpu)


def proxies_on_a_gpu(config: Config) -> int:
    """Processes that share one where proxies are tuned on GPUs; Ray puts no process on parts of two."""
    return int(1 / config.proxy.gpus_per_runner)


def gpus_of(config: Config, role: Literal["proxy", "target"]) -> float:
    """GPUs of one process that tunes one model of `role` alone."""
    return config.proxy.gpus_per_runner if role == "proxy" else float(config.target.parallelism.use_gpu)
