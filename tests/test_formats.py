"""Sources of every format: what is read, and what is refused with file and line."""

import json
from pathlib import Path

import pytest

from proxymix.config import SourceConfig
from proxymix.data.sources import load_source
from proxymix.data.splits import SplitSizes
from proxymix.errors import UserError
from proxymix.types import Example

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data (samples of public data sets)")
SIZES = SplitSizes(buffer=4, validation=3, test=5)


def load(format_, root, sizes=SIZES, seed=0, **spec):
    return load_source(SourceConfig(format=format_, **spec), data_root=str(root), sizes=sizes, seed=seed)


def write_jsonl(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")


def write_json(file, value):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value), encoding="utf-8")


def pairs(count, start=0):
    return [{"prompt": f"q{i}", "response": f"a{i}"} for i in range(start, start + count)]


def prompts(examples):
    return [example.prompt for example in examples]


# --- jsonl


def test_jsonl_file_is_carved_and_limited(tmp_path):
    write_jsonl(tmp_path / "s.jsonl", [*pairs(20), "", *pairs(20, start=20)])
    source = load("jsonl", tmp_path, path="s.jsonl", limit=9)
    assert (source.name, source.scorer) == ("s", "exact_match")
    assert [len(split) for split in (source.train, source.buffer, source.validation, source.test)] == [9, 4, 3, 5]
    assert all(example.response == example.prompt.replace("q", "a") for example in source.train)


def test_jsonl_folder_keeps_published_splits(tmp_path):
    for split, start in {"train": 0, "validation": 100, "test": 200}.items():
        write_jsonl(tmp_path / "s" / f"{split}.jsonl", pairs(12, start))
    source = load("jsonl", tmp_path, path="s", name="mine")
    assert source.name == "mine"
    assert len(source.train) == 12
    assert {prompt[:2] for prompt in prompts(source.validation)} == {"q1"}
    assert {prompt[:2] for prompt in prompts(source.test)} == {"q2"}


def test_messages_become_role_lines(tmp_path):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi {}"}, {"role": "assistant", "content": "Hello"}]
    write_jsonl(tmp_path / "s.jsonl", [{"messages": [*chat[:1], {"role": "user", "content": f"Hi {i}"}, *chat[2:]]} for i in range(12)])
    source = load("jsonl", tmp_path, path="s.jsonl")
    every = {example.prompt: example.response for example in (*source.train, *source.validation, *source.test)}
    assert every["system: Be brief.\nuser: Hi 3\nassistant: "] == "Hello"


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("{", r"s.jsonl:3: must be one JSON object a line .*column 2"),
        ("[1]", r"s.jsonl:3: must be an object"),
        ({"prompt": "q"}, r"s.jsonl:3: response must be a non-empty string, got no such key"),
        ({"prompt": " ", "response": "a"}, r"s.jsonl:3: prompt must be a non-empty string, got ' '"),
        ({"prompt": "q", "response": 3}, r"s.jsonl:3: response must be a non-empty string, got 3"),
        ({"prompt": "q", "response": "a", "harmful": "yes"}, r"s.jsonl:3: harmful must be true or false, got 'yes'"),
        ({"prompt": "q", "response": "a", "harmful": True}, r"s.jsonl:3: harmful must be given in every row or in none"),
        ({"messages": []}, r"s.jsonl:3: messages must be a list of at least two"),
        ({"messages": [{"role": "user", "content": "x"}] * 2}, r"s.jsonl:3: the last message must be the assistant's, got role 'user'"),
        ({"messages": [{"role": "bot", "content": "x"}] * 2}, r"s.jsonl:3: messages.0 must have a role among"),
        ({"messages": [{"role": "user", "content": ""}] * 2}, r"s.jsonl:3: messages.0: content must be a non-empty string"),
    ],
)
def test_a_bad_line_is_named(tmp_path, row, complaint):
    write_jsonl(tmp_path / "s.jsonl", [*pairs(2), row, *pairs(9, start=2)])
    with pytest.raises(UserError, match=complaint):
        load("jsonl", tmp_path, path="s.jsonl")


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere/train.jsonl: does not exist.*data_root"):
        load("jsonl", tmp_path, path="nowhere")
    write_jsonl(tmp_path / "few.jsonl", pairs(3))
    with pytest.raises(UserError, match=r"source 'few': needs at least 1 train, 2 validation and 1 test .* got 3 train, 0 validation, 0 test"):
        load("jsonl", tmp_path, path="few.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b"\xe9")
    with pytest.raises(UserError, match=r"latin.jsonl: cannot be read as UTF-8"):
        load("jsonl", tmp_path, path="latin.jsonl")
    write_jsonl(tmp_path / "s" / "train.jsonl", [{**row, "harmful": True} for row in pairs(12)])
    write_jsonl(tmp_path / "s" / "test.jsonl", pairs(12, start=50))
    with pytest.raises(UserError, match="source 's': harmful must be given in every row of every split"):
        load("jsonl", tmp_path, path="s")


# --- cl_benchmark and trace


@pytest.fixture
def benchmark_folder(tmp_path):
    write_json(tmp_path / "instruction_config.json", {"TC": [{"instruction": "Which topic?\n"}]})
    write_json(tmp_path / "TC" / "news" / "labels.json", ["World", "Sports"])
    for split in ("train", "dev", "test"):
        write_json(tmp_path / "TC" / "news" / f"{split}.json", [{"sentence": f"{split} {i}\n", "label": "Sports"} for i in range(9)])
    return tmp_path


def test_cl_benchmark_prompt_lists_the_options(benchmark_folder):
    source = load("cl_benchmark", benchmark_folder, task="TC/news")
    assert source.name == "news"
    assert Example("Which topic?\nOption: World, Sports\ntrain 0\nAnswer:", "Sports") in source.train
    assert all("dev" in prompt for prompt in prompts(source.validation))
    assert all("\ntest" in prompt for prompt in prompts(source.test))


def test_cl_benchmark_mistakes_are_named(benchmark_folder):
    with pytest.raises(UserError, match=r"TC/other/labels.json: cannot be read"):
        load("cl_benchmark", benchmark_folder, task="TC/other")
    news = benchmark_folder / "TC" / "news"
    write_json(news / "dev.json", [{"sentence": "x", "label": "World"}, {"sentence": "y", "label": "Music"}])
    with pytest.raises(UserError, match=r"dev.json: row 1: label must be one of .*labels.json, got 'Music'"):
        load("cl_benchmark", benchmark_folder, task="TC/news")
    write_json(news / "dev.json", ["x"])
    with pytest.raises(UserError, match=r"dev.json: row 0 must be an object, got 'x'"):
        load("cl_benchmark", benchmark_folder, task="TC/news")
    write_json(news / "dev.json", {"sentence": "x"})
    with pytest.raises(UserError, match=r"dev.json: must hold a list of rows"):
        load("cl_benchmark", benchmark_folder, task="TC/news")
    (news / "dev.json").write_text("[\n{]")
    with pytest.raises(UserError, match=r"dev.json:2: must be valid JSON"):
        load("cl_benchmark", benchmark_folder, task="TC/news")
    write_json(news / "labels.json", {"a": 1})
    with pytest.raises(UserError, match=r"labels.json: must be a list of label names"):
        load("cl_benchmark", benchmark_folder, task="TC/news")
    write_json(news / "labels.json", ["World"])
    write_json(benchmark_folder / "instruction_config.json", {"SC": []})
    with pytest.raises(UserError, match=r"instruction_config.json: needs .* under group 'TC'"):
        load("cl_benchmark", benchmark_folder, task="TC/news")


def test_trace_layout(tmp_path):
    for number, split in enumerate(("train", "eval", "test")):
        write_json(tmp_path / "C-STANCE" / f"{split}.json", [{"prompt": f"{split} {i}", "answer": str(number)} for i in range(8)])
    source = load("trace", tmp_path, task="C-STANCE")
    assert {example.response for example in source.validation} == {"1"}
    assert {example.response for example in source.test} == {"2"}
    write_json(tmp_path / "C-STANCE" / "eval.json", [{"prompt": "x", "response": "y"}])
    with pytest.raises(UserError, match=r"eval.json: row 0: answer must be a non-empty string, got no such key"):
        load("trace", tmp_path, task="C-STANCE")
    with pytest.raises(UserError, match=r"Py150/train.json: does not exist"):
        load("trace", tmp_path, task="Py150")


# --- huggingface


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    import datasets as library

    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    library.disable_progress_bars()
    return library


def test_saved_dataset_with_class_labels(tmp_path, datasets):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])})
    build = {
        split: datasets.Dataset.from_dict({"text": [f"{split} {i}" for i in range(9)], "label": [i % 2 for i in range(9)]}, features)
        for split in ("train", "dev")
    }
    datasets.DatasetDict(build).save_to_disk(tmp_path / "saved")
    source = load("huggingface", tmp_path, path="saved", columns={"prompt": "text", "response": "label"})
    assert {example.response for example in source.train} == {"bad", "good"}
    assert all(prompt.startswith("dev") for prompt in prompts(source.validation))
    assert all(prompt.startswith("train") for prompt in prompts(source.test))  # no test split: carved from train
    with pytest.raises(UserError, match=r"columns: .*saved\[train\] has no column 'question'"):
        load("huggingface", tmp_path, path="saved", columns={"prompt": "question", "response": "label"})
    with pytest.raises(UserError, match=r"columns: keys must be among prompt, .* got \['answer'\]"):
        load("huggingface", tmp_path, path="saved", columns={"answer": "label"})


def test_single_saved_dataset_with_messages(tmp_path, datasets):
    chats = [[{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a"}] for i in range(12)]
    datasets.Dataset.from_dict({"chat": chats, "prompt": ["unused"] * 12}).save_to_disk(tmp_path / "saved")
    source = load("huggingface", tmp_path, path="saved", columns={"messages": "chat"})
    assert "user: q" in source.train[0].prompt


def test_folder_of_csv_files(tmp_path, datasets):
    folder = tmp_path / "tables"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        (folder / f"{split}.csv").write_text("prompt,response\n" + "".join(f"{split} {i},{i}\n" for i in range(9)))
    source = load("huggingface", tmp_path, path="tables")
    assert all(prompt.startswith("test") for prompt in prompts(source.test))
    assert all(example.response == example.prompt.split()[1] for example in source.train)
    (folder / "test.csv").write_text("prompt,response\nx,\n")
    with pytest.raises(UserError, match=r"tables\[test\]: row 0: response must be a non-empty string, got None"):
        load("huggingface", tmp_path, path="tables")


def test_a_dataset_that_cannot_be_loaded_is_named(tmp_path, datasets):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"huggingface .*empty': cannot be loaded"):
        load("huggingface", tmp_path, path="empty")
    datasets.DatasetDict({"extra": datasets.Dataset.from_dict({"prompt": ["q"], "response": ["a"]})}).save_to_disk(tmp_path / "odd")
    with pytest.raises(UserError, match=r"needs a split 'train', got \['extra'\]"):
        load("huggingface", tmp_path, path="odd")


# --- the real thing


@needs_data
def test_every_sampled_benchmark_task_loads():
    tasks = {"TC/agnews": 4, "TC/dbpedia": 14, "SC/amazon": 5, "NLI/MNLI": 3, "QQP/QQP": 2, "SC/SST-2": 2}
    for task, num_labels in tasks.items():
        source = load("cl_benchmark", DATA, SplitSizes(100, 50, 300), path="cl_benchmark", task=task, limit=1000)
        assert len({example.response for example in source.train}) == num_labels
        assert [len(split) for split in (source.train, source.buffer, source.validation, source.test)] == [1000, 100, 50, 300]


def test_builtin_sources_take_their_label_and_limit(tmp_path):
    source = load("builtin", tmp_path, task="general", name="skills", limit=9)
    assert (source.name, len(source.train), len(source.buffer)) == ("skills", 9, 4)
