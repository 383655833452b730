"""Readers of data on disk: each turns one published layout into `Pools`, and names file and row of whatever is wrong.

    jsonl         file, or folder with {train,validation,test}.jsonl    {"prompt", "response"} or {"messages"}, optional "harmful"
    cl_benchmark  <folder>/<group>/<task>/{train,dev,test}.json         {"sentence", "label"} + labels.json + instruction_config.json
    trace         <folder>/<task>/{train,eval,test}.json                {"prompt", "answer"}

Validation and test files may be absent, except in cl_benchmark; they are then carved from train (`splits`). A row whose prompt or answer is empty is
a mistake like any other, unless the reader is given a list `left_out`: then it is skipped, and what was wrong with it goes there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from proxymix.data.chat import chat_example
from proxymix.data.splits import Pools
from proxymix.errors import UnfitRowError, UserError
from proxymix.types import Example

_ROLES = ("system", "user", "assistant", "tool")


def read_jsonl(path: Path, left_out: list[str] | None = None) -> Pools:
    """The rows of a JSON-lines file, or of a folder with `train.jsonl` and perhaps `validation.jsonl` and `test.jsonl`.

    Raises:
        UserError: a file cannot be read or a row is wrong; names file and line.
    """
    if path.is_file():
        return Pools(train=examples_from_rows(_jsonl_rows(path), left_out))
    _require(path / "train.jsonl", "a jsonl source is a file, or a folder that holds train.jsonl")
    splits = (path / f"{split}.jsonl" for split in ("train", "validation", "test"))
    return Pools(*(examples_from_rows(_jsonl_rows(file), left_out) if file.exists() else () for file in splits))


def read_cl_benchmark(folder: Path, task: str, left_out: list[str] | None = None) -> Pools:
    """One task of the standard continual-learning benchmark; the answer is the label, the prompt lists the options.

    Args:
        folder: holds `instruction_config.json` and a folder per group.
        task: `<group>/<task>`, such as `TC/agnews`.
        left_out: see above.

    Raises:
        UserError: a file is missing, a row is wrong, or its label is not in `labels.json`; names file and row.
    """
    home = folder / task
    instructions_file, labels_file = folder / "instruction_config.json", home / "labels.json"
    labels, group = _json(labels_file), task.split("/")[0]
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise UserError(f"{labels_file}: must be a list of label names, got {_short(labels)}")
    try:
        instruction = _json(instructions_file)[group][0]["instruction"]
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(f"{instructions_file}: needs [{{'instruction': text}}] under group {group!r} of task {task!r}") from error
    header = f"{instruction}Option: {', '.join(labels)}\n"

    def parse(row: Mapping[str, Any], place: str) -> Example:
        sentence, label = _text(row, "sentence", place), _text(row, "label", place)
        if label not in labels:
            raise UserError(f"{place}: label must be one of {labels_file}, got {label!r}; known are {labels}")
        return Example(f"{header}{sentence.strip()}\nAnswer:", label)

    return Pools(*(_examples(home / f"{split}.json", parse, left_out) for split in ("train", "dev", "test")))


def read_trace(folder: Path, task: str, left_out: list[str] | None = None) -> Pools:
    """One task of the TRACE benchmark.

    Args:
        folder: holds a folder per task.
        task: name of the task's folder.
        left_out: see above.

    Raises:
        UserError: `train.json` is missing or a row is wrong; names file and row.
    """

    def parse(row: Mapping[str, Any], place: str) -> Example:
        return Example(_text(row, "prompt", place), _text(row, "answer", place))

    home = folder / task
    _require(home / "train.json", "a trace task is a folder with train.json, eval.json and test.json")
    files = (home / f"{split}.json" for split in ("train", "eval", "test"))
    return Pools(*(_examples(file, parse, left_out) if file.exists() else () for file in files))


def examples_from_rows(rows: Iterable[tuple[str, Any]], left_out: list[str] | None = None) -> tuple[Example, ...]:
    """Rows of `prompt`/`response` or `messages`, each with an optional `harmful` and `tests`, as examples.

    Args:
        rows: pairs of a row and the place it was read at (`file:line`), for messages.
        left_out: see above.

    Raises:
        UserError: a row is wrong, or some rows have `harmful` and others do not; names the place.
    """
    examples: list[Example] = []
    for place, row in rows:
        if not isinstance(row, Mapping):
            raise UserError(f"{place}: must be an object with 'prompt' and 'response', or with 'messages', got {_short(row)}")
        harmful = row.get("harmful")
        if not (harmful is None or isinstance(harmful, bool)):
            raise UserError(f"{place}: harmful must be true or false, got {_short(harmful)}")
        if examples and (harmful is None) != (examples[0].harmful is None):
            raise UserError(f"{place}: harmful must be given in every row or in none, got {_short(harmful)} after rows that differ")
        with _unfit_rows_go(left_out):
            examples.append(_example(row, harmful, place))
    return tuple(examples)


def _example(row: Mapping[str, Any], harmful: bool | None, place: str) -> Example:
    if "messages" in row:
        return _conversation(row["messages"], harmful, place)
    return Example(_text(row, "prompt", place), _text(row, "response", place), harmful, tests=_tests(row.get("tests"), place))


@contextmanager
def _unfit_rows_go(left_out: list[str] | None) -> Iterator[None]:
    """To `left_out`, where it is given, instead of stopping the reader."""
    try:
        yield
    except UnfitRowError as error:
        if left_out is None:
            raise
        left_out.append(str(error))


def _tests(value: Any, place: str) -> str | None:
    """A text, or a list of texts: one statement each."""
    lines = value if isinstance(value, list) else [value]
    if value is None or (lines and all(isinstance(line, str) for line in lines)):
        return None if value is None else "\n".join(lines)
    raise UserError(f"{place}: tests must be a text or a list of texts, got {_short(value)}")


def _conversation(messages: Any, harmful: bool | None, place: str) -> Example:
    """A chat, whose last message is the answer to the others."""
    if not isinstance(messages, list) or len(messages) < 2:
        raise UserError(f"{place}: messages must be a list of at least two {{'role', 'content'}}, got {_short(messages)}")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
            raise UserError(f"{place}: messages.{index} must have a role among {', '.join(_ROLES)}, got {_short(message)}")
        _text(message, "content", f"{place}: messages.{index}")
    if messages[-1]["role"] != "assistant":
        raise UnfitRowError(f"{place}: the last message must be the assistant's, got role {messages[-1]['role']!r}; it is the answer to learn")
    return chat_example([(message["role"], message["content"]) for message in messages[:-1]], messages[-1]["content"], harmful)


def _examples(file: Path, parse: Callable[[Mapping[str, Any], str], Example], left_out: list[str] | None) -> tuple[Example, ...]:
    rows = _json(file)
    if not isinstance(rows, list):
        raise UserError(f"{file}: must hold a list of rows, got {_short(rows)}")
    examples = []
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise UserError(f"{file}: row {index} must be an object, got {_short(row)}")
        with _unfit_rows_go(left_out):
            examples.append(parse(row, f"{file}: row {index}"))
    return tuple(examples)


def _jsonl_rows(file: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_read(file).split("\n"), start=1):
        if line.strip():
            try:
                yield f"{file}:{number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{file}:{number}: must be one JSON object a line ({error.msg} at column {error.colno}), got {_short(line)}"
                ) from error


def _json(file: Path) -> Any:
    try:
        return json.loads(_read(file))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: must be valid JSON ({error.msg} at column {error.colno})") from error


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error.reason
        raise UserError(f"{file}: cannot be read as UTF-8 text ({reason}); check data_root, path and task") from error


def _require(file: Path, rule: str) -> None:
    if not file.is_file():
        raise UserError(f"{file}: does not exist; {rule} (check data_root, path and task)")


def _text(row: Mapping[str, Any], key: str, place: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        # A cell may be empty; a key that is not there, or no text, is a mistake about all rows.
        empty = key in row and (value is None or isinstance(value, str))
        fault = f"{place}: {key} must be a non-empty string, got {_short(value) if key in row else 'no such key'}"
        raise UnfitRowError(f"{fault}; mend the row, or leave such rows out with unfit: drop") if empty else UserError(fault)
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
