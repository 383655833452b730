"""Rows that do not fit stop a run, or go and are counted: the same everywhere, and only those."""

import json

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxymix.config import validated
from proxymix.data import fitting
from proxymix.data.encoding import encode_source, example_ids, fitting_tests
from proxymix.data.sources import configured_source, load_source
from proxymix.data.splits import SplitSizes
from proxymix.data.tokenizers import word_tokenizer
from proxymix.errors import UserError
from proxymix.evaluation.generation import askable
from proxymix.tuning_config import SourceConfig
from proxymix.types import Example, Source

TOKENIZER = word_tokenizer(["a", "b", "c", "d", "q"])
ROOM = 6
answers = st.lists(st.integers(1, 9), min_size=4, max_size=20)


@pytest.fixture(autouse=True)
def unsaid():
    fitting.say_once.cache_clear()


def source_of(lengths, unfit="drop", **splits):
    rows = tuple(Example(f"q {'b ' * number}a", " ".join("c" * length)) for number, length in enumerate(lengths))
    return Source("s", rows, rows[: len(rows) // 2], **{"validation": (), "test": (), **splits}, unfit=unfit)


@given(answers)
def test_exactly_the_rows_that_would_stop_a_run_go(lengths):
    source = source_of(lengths)
    fitting_rows = [row for row, length in zip(source.train, lengths, strict=True) if length + 1 < ROOM]
    if not fitting_rows:
        with pytest.raises(UserError, match=r"source 's': unfit: drop leaves 0 of \d+ train rows, it needs 1"):
            encode_source(source, TOKENIZER, ROOM, 2)
        return
    encoded = encode_source(source, TOKENIZER, ROOM, 2)
    clean = encode_source(Source("s", tuple(fitting_rows), tuple(row for row in fitting_rows if row in source.buffer), (), ()), TOKENIZER, ROOM, 2)
    for split in ("train", "buffer"):
        assert getattr(encoded, split).input_ids.tolist() == getattr(clean, split).input_ids.tolist()
        assert getattr(encoded, split).labels.tolist() == getattr(clean, split).labels.tolist()
    if len(fitting_rows) < len(lengths):
        with pytest.raises(UserError, match=r"tuning.max_length: must hold the whole answer .* leave such rows out with unfit: drop"):
            encode_source(source_of(lengths, "error"), TOKENIZER, ROOM, 2)


def test_what_goes_and_what_is_cut_is_said_once(caplog):
    source = source_of([1, 9, 2, 9, 1, 1])  # Prompts of 3 to 8 tokens: of those that stay, the third and later ones do not fit whole.
    for _ in range(2):
        encode_source(source, TOKENIZER, ROOM, 2)
    cut = sum(sum(map(len, example_ids(row, TOKENIZER))) > ROOM for row in source.train if len(row.response) < 9)
    assert cut == 3
    assert [record.getMessage() for record in caplog.records] == [
        "source 's': of 6 rows 2 are dropped, whose answers do not fit, the prompts of 3 lose their beginning (tuning.max_length=6)"
    ]


def test_prompts_that_are_cut_are_told_of_any_source_and_silence_means_none(caplog):
    encode_source(source_of([1] * 6, "error"), TOKENIZER, ROOM, 2)
    assert "the prompts of 4 lose their beginning" in caplog.text
    caplog.clear()
    encode_source(source_of([1] * 6), TOKENIZER, 64, 2)
    assert not caplog.records


def test_flags_follow_their_rows():
    rows = tuple(Example(f"q {'b ' * n}a", "c " * (9 if n == 0 else 1), harmful=n in (0, 2)) for n in range(4))
    encoded = encode_source(Source("s", rows[1:], (), rows, (), "refusal", "drop"), TOKENIZER, ROOM, 2)
    assert encoded.harmful.tolist() == [False, True, False]
    assert len(encoded.probe) == 2


def test_test_rows_that_cannot_be_answered_are_not_asked():
    tree = {"name": "x", "sequence": {"tasks": "long"}, "tuning": {"max_length": 12}, "evaluation": {"max_new_tokens": 4}}
    config, lengths = validated(tree, "x"), [1, 3, 4, 11, 12]

    def tests_of(scorer, unfit):
        rows = source_of(lengths).train
        return [len(row.response.split()) for row in askable(config, [Source("s", (), (), (), rows, scorer, unfit)], TOKENIZER)[0].test]

    assert tests_of("exact_match", "drop") == [1, 3]
    assert tests_of("rouge_l", "drop") == [1, 3, 4]  # Only what must match exactly need be complete.
    assert tests_of("rouge_l", "error") == lengths
    with pytest.raises(UserError, match=r"evaluation.max_new_tokens: must hold the longest test answer of s"):
        tests_of("exact_match", "error")
    assert fitting_tests(source_of([1, 2], test=()), TOKENIZER, ROOM).train == ()


ROWS = [{"prompt": f"q {i}", "response": "a"} for i in range(40)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(path, **settings):
    return load_source(SourceConfig(path=str(path), **settings), data_root=None, sizes=SplitSizes(4, 4, 4), seed=0)


@pytest.mark.parametrize(
    "bad",
    [
        {"prompt": "q", "response": ""},
        {"prompt": "  ", "response": "a"},
        {"prompt": "q", "response": None},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": ""}]},
        {"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "q"}]},
    ],
)
def test_a_row_without_prompt_or_answer_stops_a_run_or_goes_wherever_it_stands(tmp_path, caplog, bad):
    path = write(tmp_path / "rows.jsonl", [*ROWS[:20], bad, *ROWS[20:], bad])
    with pytest.raises(UserError, match=r"rows.jsonl:21: .*must be"):
        load(path, format="jsonl", limit=8)
    source = load(path, format="jsonl", unfit="drop")
    assert {row.prompt for split in (source.train, source.validation, source.test) for row in split} == {row["prompt"] for row in ROWS}
    assert len(load(path, format="jsonl", unfit="drop", limit=8).train) == 8
    [said] = [record.getMessage() for record in caplog.records]
    assert "2 rows without a prompt or an answer are left out, the first: " in said
    assert "rows.jsonl:21" in said


def test_mistakes_about_all_rows_are_never_dropped(tmp_path):
    for bad in ({"promt": "q", "response": "a"}, {"prompt": "q", "response": 7}, {"prompt": "q", "response": "a", "harmful": "yes"}, ["q", "a"]):
        path = write(tmp_path / "rows.jsonl", [*ROWS, bad])
        with pytest.raises(UserError, match=r"rows.jsonl:41"):
            load(path, format="jsonl", unfit="drop")


def test_a_split_without_answers_is_carved_instead(tmp_path):
    """As published: test rows whose answers are kept back."""
    rows = {name: [row[name] for row in ROWS] for name in ("prompt", "response")}
    data = datasets.DatasetDict(
        train=datasets.Dataset.from_dict(rows), test=datasets.Dataset.from_dict({"prompt": ["x", "y"], "response": ["", None]})
    )
    data.save_to_disk(tmp_path / "hub")
    source = load(tmp_path / "hub", format="huggingface", unfit="drop")
    assert len(source.test) == 4
    assert {row.prompt for row in source.test} <= set(rows["prompt"])


def test_labels_that_are_kept_back_are_no_answers(tmp_path):
    """As published: -1 for every test row."""
    features = datasets.Features({"prompt": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])})
    rows = {"prompt": [f"q {i}" for i in range(40)], "label": [i % 2 for i in range(40)]}
    hidden = {"prompt": ["x", "y"], "label": [-1, -1]}
    columns = {"prompt": "prompt", "response": "label"}
    for name, test in (("all", hidden), ("some", {"prompt": ["x", "y"], "label": [-1, 1]})):
        data = datasets.DatasetDict(train=datasets.Dataset.from_dict(rows, features), test=datasets.Dataset.from_dict(test, features))
        data.save_to_disk(tmp_path / name)
        with pytest.raises(UserError, match=r"\[test\]: row 0: response must be a non-empty string, got None; .* unfit: drop"):
            load(tmp_path / name, format="huggingface", columns=columns)
    carved = load(tmp_path / "all", format="huggingface", columns=columns, unfit="drop").test
    assert {row.prompt for row in carved} <= set(rows["prompt"])
    assert {row.response for row in carved} <= {"bad", "good"}
    [left] = load(tmp_path / "some", format="huggingface", columns=columns, unfit="drop").test
    assert (left.prompt, left.response) == ("y", "good")


def test_the_readers_of_published_layouts_drop_too(tmp_path):
    home = tmp_path / "task"
    home.mkdir()
    (home / "train.json").write_text(json.dumps([*({"prompt": row["prompt"], "answer": "a"} for row in ROWS), {"prompt": "", "answer": "a"}]))
    with pytest.raises(UserError, match="row 40: prompt must be a non-empty string, got ''; mend the row, or leave such rows out with unfit: drop"):
        load(tmp_path, format="trace", task="task")
    assert load(tmp_path, format="trace", task="task", unfit="drop").unfit == "drop"


def test_an_empty_cell_fills_nothing_into_a_template(tmp_path):
    datasets.Dataset.from_dict({"question": [f"q {i}" for i in range(40)], "context": [None] * 40, "response": ["a"] * 40}).save_to_disk(
        tmp_path / "d"
    )
    spec = SourceConfig(format="huggingface", path=str(tmp_path / "d"), columns={"prompt": "{question}\n{context}"})
    source = configured_source(validated({"name": "x", "sequence": {"tasks": "long"}}, "x"), spec)
    assert all(row.prompt.startswith("q ") and row.prompt.endswith("\n") for row in source.train)
