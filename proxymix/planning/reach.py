"""Whether models and data are to be had, without reading them: files by their place, hub names by one question each.

    Config → Found(name, origin, state) of every model and source

A machine without a network says so once, and asks no further.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from proxymix.cases import sequence_tasks
from proxymix.learners.published import Published, reference

if TYPE_CHECKING:
    from proxymix.config import Config, SourceConfig

State = Literal["here", "on the hub", "missing", "unknown"]
TIMEOUT_S = 5.0
Question = Callable[[str], Any]


@dataclass(frozen=True)
class Found:
    """One model or source."""

    name: str
    origin: str
    state: State
    detail: str = ""


def reachable(config: Config, ask_data: Question | None = None, ask_model: Question | None = None) -> list[Found]:
    """Every model and every source of the sequence and the curriculum.

    Args:
        config: of the run.
        ask_data: says something about a data set on the hub (`name`, or `name@revision`), or raises; None: the hub's own client.
        ask_model: the same for models.
    """
    hub = _Hub(ask_data, ask_model)
    found = []
    for role in ("proxy", "target"):
        model = getattr(config, role).model
        if model.preset:
            found.append(Found(role, f"preset {model.preset}", "here", "trained here"))
        elif model.path:
            found.append(Found(role, model.path, "here" if (Path(model.path) / "config.json").is_file() else "missing"))
        else:
            found.append(hub.model(role, reference(model)))
    return found + [_source(config, spec, hub) for spec in every_source(config)]


def every_source(config: Config) -> list[SourceConfig]:
    """Anchors, tasks and what the curriculum draws from, each once."""
    return list(dict.fromkeys((*config.sequence.anchors, *sequence_tasks(config), *(config.controller.curriculum.pool or ()))))


def _source(config: Config, spec: SourceConfig, hub: _Hub) -> Found:
    origin = " ".join(part for part in (spec.path, spec.task) if part)
    if spec.format == "builtin":
        return Found(spec.label, origin, "here", "generated")
    path = Path(config.data_root or ".") / (spec.path or "")
    if spec.format == "huggingface" and not path.exists():
        return hub.data(spec.label, f"{spec.path}@{spec.revision}" if spec.revision else str(spec.path), origin)
    needed = path / str(spec.task) / "train.json" if spec.format in ("cl_benchmark", "trace") else path
    return Found(spec.label, origin, "here" if needed.exists() else "missing", "" if needed.exists() else f"no {needed}")


class _Hub:
    """Asks until it is clear that nobody answers."""

    def __init__(self, ask_data: Question | None, ask_model: Question | None) -> None:
        from huggingface_hub import HfApi

        api = HfApi()
        self._ask_data: Question = ask_data or partial(_ask, api.dataset_info)
        self._ask_model: Question = ask_model or partial(_ask, api.model_info)
        self._away = ""
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)

    def data(self, name: str, repository: str, origin: str) -> Found:
        return self._found(name, repository, origin, self._ask_data)

    def model(self, name: str, repository: str) -> Found:
        return self._found(name, repository, repository, self._ask_model)

    def _found(self, name: str, repository: str, origin: str, ask: Question) -> Found:
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

        if self._away:
            return Found(name, origin, "unknown", self._away)
        try:
            ask(repository)
        except GatedRepoError:
            return Found(name, origin, "missing", "gated: accept its licence on the hub and export HF_TOKEN")
        except RevisionNotFoundError:
            return Found(name, origin, "missing", "the hub has the name, but not this revision")
        except RepositoryNotFoundError:
            return Found(name, origin, "missing", "no such name on the hub, or HF_TOKEN may not see it")
        except Exception as error:  # The client lets through whatever its HTTP library raises.
            self._away = f"the hub does not answer ({type(error).__name__})"
            return Found(name, origin, "unknown", self._away)
        return Found(name, origin, "on the hub")


def _ask(info: Callable[..., Any], place: str) -> Any:
    name, revision = Published.of(place)
    return info(name, revision=revision, timeout=TIMEOUT_S)
