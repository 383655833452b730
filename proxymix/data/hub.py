"""Reader of Hugging Face data sets: a hub name, a folder written by `save_to_disk`, or a local folder of csv, json or parquet files.

path + column map → datasets → rows of prompt, response → Pools
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from proxymix.data.formats import examples_from_rows
from proxymix.data.splits import Pools
from proxymix.errors import UserError

_SPLITS = {"train": ("train",), "validation": ("validation", "valid", "dev", "eval"), "test": ("test",)}
_KEYS = ("prompt", "response", "messages", "harmful", "tests")


def read_huggingface(
    path: str,
    columns: Mapping[str, str],
    subset: str | None = None,
    train: str | None = None,
    left_out: list[str] | None = None,
    revision: str | None = None,
) -> Pools:
    """The data set's own train, validation and test splits; what is absent is left empty.

    Args:
        path: an existing local folder, else a name on the hub.
        columns: from `prompt`, `response`, `messages`, `harmful`, `tests` to the data set's columns, or to a template of them in braces; what is not
            mapped goes by its own name. A class label is read as its name, another number as its text.
        subset: the data set's configuration, where it has several.
        train: name of the split that training rows come from; None: `train`.
        left_out: see `proxymix.data.formats`.
        revision: commit, tag or branch of a data set on the hub; None: the newest.

    Raises:
        UserError: the data set cannot be loaded, has no train split or lacks a column; or a row is wrong.
    """
    if unknown := set(columns) - set(_KEYS):
        raise UserError(f"columns: keys must be among {', '.join(_KEYS)}, got {sorted(unknown)}")
    splits = _load(path, subset, revision)
    if (train or "train") not in splits:
        raise UserError(f"huggingface {path!r}: needs a split {train or 'train'!r}, got {list(splits)}; name the one to learn from in split")
    known = _SPLITS | ({"train": (train,)} if train else {})
    chosen = {split: next((splits[name] for name in names if name in splits), None) for split, names in known.items()}
    found = {split: _rows(data, columns, f"{path}[{split}]") for split, data in chosen.items() if data is not None}
    return Pools(**{split: examples_from_rows(rows, left_out) for split, rows in found.items()})


def _load(path: str, subset: str | None, revision: str | None) -> dict[str, Any]:
    import datasets  # half a second, and only this format needs it

    folder = Path(path)
    if revision is not None and folder.exists():
        raise UserError(f"revision: must be null for a folder, got {revision!r} and {path!r}; set it to null, or give the data set's name on the hub")
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            data = datasets.load_from_disk(path)
        else:
            _check_revision(path, subset, revision)
            data = datasets.load_dataset(path, name=subset, revision=revision)
    except UserError:
        raise
    except Exception as error:  # `datasets` lets through whatever its file systems, parsers and HTTP client raise
        raise UserError(
            f"huggingface {path!r}: cannot be loaded ({type(error).__name__}: {error}); check path, task (the subset), revision and the network"
        ) from error
    return dict(data) if isinstance(data, dict) else {"train": data}


def _check_revision(path: str, subset: str | None, revision: str | None) -> None:
    """Away from the hub, `datasets` takes what it has prepared last, of whatever revision."""
    from datasets import load_dataset_builder
    from datasets.packaged_modules.cache.cache import Cache

    if revision is None:
        return
    builder = load_dataset_builder(path, name=subset, revision=revision)
    if isinstance(builder, Cache) and builder.hash != revision:
        raise UserError(
            f"revision: the hub is away, and what is here of {path!r} is commit {builder.hash}, got {revision!r}; "
            "set it to that commit, or run where the hub can be reached"
        )


def _rows(data: Any, columns: Mapping[str, str], place: str) -> Iterator[tuple[str, Any]]:
    templates = {key: column for key, column in columns.items() if "{" in column}
    keys = {key: columns.get(key, key) for key in _KEYS if key not in templates}
    if missing := [column for key, column in keys.items() if key in columns and column not in data.column_names]:
        raise UserError(f"columns: {place} has no column {missing[0]!r}; it has {data.column_names}")
    kept = {key: column for key, column in keys.items() if column in data.column_names}
    if "messages" in columns:
        kept = {key: column for key, column in kept.items() if key in ("messages", "harmful")}
    elif {"prompt", "response"} <= {*kept, *templates}:
        kept.pop("messages", None)
    for index, row in enumerate(data):
        at = f"{place}: row {index}"
        named = {column: _named(value, data.features.get(column)) for column, value in row.items()}
        values = {key: row[column] for key, column in kept.items()}
        if "response" in kept and isinstance(values["response"], int | float):
            answer = named[kept["response"]]
            values["response"] = None if answer is None else str(answer)
        yield at, values | {key: _filled(template, named, at) for key, template in templates.items()}


def _named(value: Any, feature: Any) -> Any:
    """A class label by its name; None where it has none, as where test labels are kept back (-1)."""
    names = getattr(feature, "names", None)
    if not names or not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None


def _filled(template: str, row: Mapping[str, Any], place: str) -> str:
    try:
        return template.format_map({column: "" if value is None else value for column, value in row.items()})
    except (KeyError, IndexError, AttributeError, ValueError, TypeError) as error:
        raise UserError(f"columns: the template {template!r} does not fit {place} ({type(error).__name__}: {error}); it has {list(row)}") from error
