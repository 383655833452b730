"""From answers to score files and the accuracy matrix, and the transformers engine that gives the answers."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from proxymix.artifacts import target_folder, write_json
from proxymix.config import Config
from proxymix.data.encoding import IGNORED, encode_split, prompt_ids
from proxymix.data.tokenizers import train_bpe, word_tokenizer
from proxymix.errors import UserError
from proxymix.evaluation.generation import TransformersGenerator, check_answers_fit, generate_answers, until
from proxymix.evaluation.scoring import assemble_accuracy, base_score_path, checkpoint_scores, score_path
from proxymix.learners.decoder import LeanLlama
from proxymix.learners.learner import Learner
from proxymix.learners.pretraining import llama_config
from proxymix.types import Example, Source

WORDS = ("red", "blue", "green", "one", "two", "three", "cat", "dog", "hen")


def config(**evaluation):
    return Config.model_validate({"name": "t", "sequence": {"tasks": ["compare@heldout-0"]}, "evaluation": evaluation, "tuning": {"max_length": 16}})


def source(name, rows, scorer="exact_match"):
    return Source(name, train=(), buffer=(), validation=(), test=tuple(rows), scorer=scorer)


SAFETY = source("safety", [Example("a", "i cannot help", True), Example("b", "sure", False), Example("c", "i cannot help", True)], "refusal")
COLOURS = source("colours", [Example("a", "red blue"), Example("b", "green")])


def test_exact_match_and_refusals_are_scored_apart():
    answers = {"safety": ["I cannot help.", "sure do it", "sure do it"], "colours": [" red  blue", "greens"]}
    scores = checkpoint_scores([SAFETY, COLOURS], answers, gamma=2.0)
    assert scores["sources"] == {
        "safety": {"accuracy": 2 / 3, "num_rows": 3, "num_unscored": 0},
        "colours": {"accuracy": 0.5, "num_rows": 2, "num_unscored": 0},
    }
    assert scores["safety"] == {"refusal_accuracy": 0.5, "benign_compliance": 1.0, "balanced": 0.75, "selectivity": 0.5, "num_unscored": 0}


def test_unscored_is_none_never_zero():
    scores = checkpoint_scores([SAFETY, source("empty", [])], {"safety": ["", "...", ""], "empty": []}, gamma=1.0)
    assert scores["sources"]["safety"]["accuracy"] is None
    assert scores["sources"]["empty"] == {"accuracy": None, "num_rows": 0, "num_unscored": 0}
    assert scores["safety"]["selectivity"] is None
    assert scores["safety"]["num_unscored"] == 3
    json.dumps(scores, allow_nan=False)


def test_no_refusal_source_means_no_safety():
    assert checkpoint_scores([COLOURS], {"colours": ["red blue", "green"]}, gamma=1.0)["safety"] is None


def test_a_missing_answer_is_an_error():
    with pytest.raises(ValueError, match="one to one"):
        checkpoint_scores([COLOURS], {"colours": ["red blue"]}, gamma=1.0)


@given(st.integers(1, 5), st.data())
def test_the_matrix_holds_exactly_what_was_scored(tmp_path_factory, num_tasks, data):
    run_dir = tmp_path_factory.mktemp("run")
    tasks, folder = [f"t{index}" for index in range(num_tasks)], target_folder(run_dir, "random_30", 7)
    scored = data.draw(st.sets(st.integers(0, num_tasks - 1)))
    for row in scored:
        sources = {name: {"accuracy": row + column / 10, "num_rows": 1} for column, name in enumerate([*tasks, "anchor"])}
        write_json(score_path(folder, row), {"sources": sources, "safety": {"selectivity": row}})
    write_json(base_score_path(run_dir), {"sources": {"t0": {"accuracy": None, "num_rows": 1}, "anchor": {"accuracy": 0.5, "num_rows": 1}}})
    content = assemble_accuracy(run_dir, "random_30", 7, tasks, ["anchor"])
    assert content == json.loads((folder / "accuracy.json").read_text())
    for row in range(num_tasks):
        expected = [row + column / 10 for column in range(num_tasks)] if row in scored else [None] * num_tasks
        assert content["matrix"][row] == expected
        assert content["anchor_accuracy"]["anchor"][row] == (row + num_tasks / 10 if row in scored else None)
        assert content["safety"][row] == ({"selectivity": row} if row in scored else None)
    assert content["base"] == {"anchor": 0.5, **dict.fromkeys(tasks)}
    assert content["base_safety"] is None
    assert set(content["num_unscored"].values()) == {0}


def test_answers_without_a_score_are_counted_over_all_checkpoints(tmp_path):
    folder = target_folder(tmp_path, "random_30", 0)
    for row, path in enumerate((base_score_path(tmp_path), score_path(folder, 0), score_path(folder, 1))):
        write_json(path, {"sources": {"t0": {"accuracy": None, "num_rows": 3, "num_unscored": row}}})
    assert assemble_accuracy(tmp_path, "random_30", 0, ["t0", "t1"], [])["num_unscored"] == {"t0": 3, "t1": 0}


def test_answers_that_were_cut_and_are_not_right_are_counted_where_they_may_have_had_no_room(tmp_path):
    sums = source("sums", [Example("a", "7"), Example("b", "8"), Example("c", "9"), Example("d", "nine")], "numeric")
    answers = {"sums": ["so 7", "3 and 5 make", "2", "so"], "colours": ["red", "green"], "safety": ["no", "no", "no"]}
    cut = {"sums": [True, True, False, True], "colours": [True, True], "safety": [True] * 3}
    rows = checkpoint_scores([sums, COLOURS, SAFETY], answers, gamma=1.0, cut=cut)["sources"]
    assert rows["sums"]["num_cut"] == 1
    assert not [name for name in ("colours", "safety") if "num_cut" in rows[name]]
    folder = target_folder(tmp_path, "random_30", 0)
    for path in (base_score_path(tmp_path), score_path(folder, 0)):
        write_json(path, {"sources": rows})
    assert assemble_accuracy(tmp_path, "random_30", 0, ["sums", "colours"], [])["num_cut"] == {"sums": 1, "colours": 0}


class Talker:
    """Says as many words as it is asked for."""

    def generate(self, prompts):
        return [prompt[1:4] for prompt in prompts]


def test_an_answer_as_long_as_may_be_was_cut():
    rows = [Example("red " * length, "hen") for length in (1, 2, 3, 5)]
    assert generate_answers(Talker(), word_tokenizer(WORDS), rows, 16, 3)[1] == [False, False, True, True]


@given(st.lists(st.integers(0, 5)), st.integers(0, 5))
def test_until_stops_before_the_first_end(tokens, end):
    kept = until(tokens, end)
    assert end not in kept
    assert tokens[: len(kept) + 1] in (kept, [*kept, end])


def tiny_model(folder, tokenizer, steps=0, rows=()):
    """A 32×2 Llama folder, tuned on `rows` for `steps` full batches."""
    network = LeanLlama(llama_config("nano", tokenizer, 64))
    network.initialise(torch.Generator().manual_seed(0))
    if steps:
        learner = Learner(network, config().tuning.model_copy(update={"learning_rate": 1e-2}))
        learner.begin_task(steps)
        for _ in range(steps):
            learner.train_step(encode_split(rows, tokenizer, 16).batch())
    network.save(folder)
    tokenizer.save_pretrained(folder)
    return network


ROWS = [Example(f"{a} {b}", f"{b} {a}") for a in WORDS for b in WORDS if a != b]


@pytest.mark.parametrize("tokenizer", [word_tokenizer(WORDS), train_bpe(WORDS, 300)], ids=["words", "bpe"])
def test_generation_agrees_with_the_teacher_forced_verdict(tmp_path, tokenizer):
    network = tiny_model(tmp_path, tokenizer, steps=45, rows=ROWS[:40])
    settings = config(max_new_tokens=8)
    generator = TransformersGenerator(str(tmp_path), settings, tokenizer)
    answers, _ = generate_answers(generator, tokenizer, ROWS, settings.tuning.max_length, 8)
    right = Learner(network, settings.tuning).accuracies({"rows": encode_split(ROWS, tokenizer, 16)})["rows"].tolist()
    assert [answer == row.response for answer, row in zip(answers, ROWS, strict=True)] == right
    assert 5 < sum(right) < len(ROWS)  # Half learnt, or the comparison would say nothing.


def test_batches_and_padding_change_no_token(tmp_path):
    tokenizer = word_tokenizer(WORDS)
    tiny_model(tmp_path, tokenizer)
    generator = TransformersGenerator(str(tmp_path), config(max_new_tokens=5), tokenizer)
    prompts = [prompt_ids(" ".join(WORDS[: 1 + index % 9]), tokenizer) for index in range(12)]
    together = generator.generate(prompts)
    assert together == [generator.generate([prompt])[0] for prompt in prompts]
    generator.batch_size = 5
    assert together == generator.generate(prompts)
    assert all(len(tokens) <= 5 for tokens in together)


def test_load_changes_the_model(tmp_path):
    tokenizer = word_tokenizer(WORDS)
    for name, steps in (("a", 0), ("b", 10)):
        (tmp_path / name).mkdir()
        tiny_model(tmp_path / name, tokenizer, steps=steps, rows=ROWS)
    generator = TransformersGenerator(str(tmp_path / "a"), config(), tokenizer)
    first = generator.generate([[1, 5, 6]])
    generator.load(str(tmp_path / "b"))
    assert generator.generate([[1, 5, 6]]) != first
    generator.load(str(tmp_path / "a"))
    assert generator.generate([[1, 5, 6]]) == first


class Recorder:
    """Knows no answer, but what it was asked."""

    def generate(self, prompts):
        self.prompts = prompts
        return [[] for _ in prompts]


def test_prompts_are_cut_exactly_as_in_tuning():
    tokenizer, recorder = word_tokenizer(WORDS), Recorder()
    rows = [Example("red " * length + "hen", "one " * answer) for length in (1, 9, 10, 11, 12, 13, 30) for answer in (1, 2, 14)]
    assert generate_answers(recorder, tokenizer, rows, 16, 8) == ([""] * len(rows), [False] * len(rows))
    split = encode_split(rows, tokenizer, 16)
    starts = [int((labels != IGNORED).nonzero()[0]) for labels in split.labels]
    assert recorder.prompts == [ids[: start + 1].tolist() for ids, start in zip(split.input_ids, starts, strict=True)]
    assert {len(prompt) for prompt in recorder.prompts} == {1, 3, 11, 12, 13, 14}


def test_a_right_answer_that_cannot_be_given_is_told():
    tokenizer, long = word_tokenizer(WORDS), Example("a", "one " * 8)
    sources = [COLOURS, source("numbers", [Example("a", "two"), long])]
    with pytest.raises(UserError, match=r"^evaluation.max_new_tokens: must hold the longest test answer of numbers \(9 tokens\), got 8; raise it$"):
        check_answers_fit(config(max_new_tokens=8), sources, tokenizer)
    check_answers_fit(config(max_new_tokens=9), sources, tokenizer)
    check_answers_fit(config(max_new_tokens=1), [source("refusals", [long], "refusal"), source("empty", [])], tokenizer)
