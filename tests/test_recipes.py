"""The recipes of published models: they load, hold the paper's orders, and files extend files."""

import re
from pathlib import Path

import datasets
import pytest

from proxymix.config import load_config
from proxymix.data.hub import read_huggingface
from proxymix.data.sources import load_source
from proxymix.data.splits import SplitSizes
from proxymix.errors import UserError
from proxymix.tuning_config import SourceConfig

CONFIGS = Path(__file__).parents[1] / "configs"
SEQUENCES = {
    "s1": ["code", "math", "chat"],
    "s2": ["chat", "medical", "legal", "code"],
    "s3": ["noncompliance", "code", "writing", "math"],
    "s4": ["summarization", "qa", "code", "chat", "math"],
    "s5": ["code", "python", "rust", "math"],
    "trace": ["C-STANCE", "FOMC", "MeetingBank", "Py150", "ScienceQA", "NumGLUE-cm", "NumGLUE-ds", "20Minuten"],
    "order1": ["dbpedia", "amazon", "yahoo", "agnews"],
    "order2": ["dbpedia", "amazon", "agnews", "yahoo"],
    "order3": ["yahoo", "amazon", "agnews", "dbpedia"],
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_recipes_hold_the_published_orders(name):
    config = load_config(CONFIGS / f"llama3_8b_{name}.yaml")
    assert [spec.label for spec in config.sequence.tasks] == SEQUENCES[name]
    assert (config.target.lora.rank, config.target.lora.alpha, config.tuning.batch_size, config.tuning.learning_rate) == (64, 128, 32, 2e-4)
    assert {spec.label for spec in config.controller.curriculum.pool}.isdisjoint(SEQUENCES[name])


@pytest.mark.parametrize("name", SEQUENCES)
def test_every_data_set_and_model_of_a_recipe_has_its_licence_in_the_docs(name):
    rows = licences()
    config = load_config(CONFIGS / f"llama3_8b_{name}.yaml")
    for model in (config.proxy.model, config.target.model):
        assert any(f"`{model.hub}`" in cells[0] for cells in rows)
    for spec in (*config.sequence.tasks, *config.sequence.anchors, *config.controller.curriculum.pool):
        if spec.format == "huggingface":
            assert any(f"`{spec.path}`" in cells[1] and (spec.task or "") in cells[2] for cells in rows if len(cells) > 2), spec
        elif spec.format in ("trace", "cl_benchmark"):
            assert any(cells[0] == spec.label for cells in rows), spec


def licences():
    """Cells of every row of the tables whose last column is a licence, each of them filled."""
    found, inside = [], False
    for line in (CONFIGS.parent / "docs" / "data.md").read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            inside = False
        elif not set(line) <= set("|-"):
            cells = [cell.strip() for cell in line.strip()[1:-1].split("|")]
            if inside:
                assert re.search(r"[A-Z]{2}|MIT|card|License|Apache", cells[-1]), f"no licence in {line}"
                found.append(cells)
            inside = inside or "licence" in cells[-1]
    return found


def test_nothing_made_from_gsm8k_is_practised_on():
    """It is the Math task: a controller would be judged on what it has seen."""
    made = {"metamathqa-50k", "numina-cot-100k", "openhermes-100k", "openai/gsm8k", "main"}
    for name in SEQUENCES:
        pool = load_config(CONFIGS / f"llama3_8b_{name}.yaml").controller.curriculum.pool
        assert made.isdisjoint({spec.task for spec in pool} | {spec.path for spec in pool})


def test_a_file_extends_others_and_has_the_last_word(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "bottom.yaml").write_text(
        "name: bottom\nsequence: {tasks: [compare@heldout-0, cipher@heldout-0]}\ntuning: {batch_size: 4, max_length: 32}"
    )
    (tmp_path / "deep" / "middle.yaml").write_text("extends: ../bottom.yaml\nname: middle\ntuning: {batch_size: 6}")
    (tmp_path / "top.yaml").write_text("extends: deep/middle.yaml\nsequence: {tasks: [compare@heldout-0]}")
    config = load_config(tmp_path / "top.yaml", ["tuning.steps_per_stage=3"])
    assert (config.name, config.tuning.batch_size, config.tuning.max_length, config.tuning.steps_per_stage) == ("middle", 6, 32, 3)
    assert len(config.sequence.tasks) == 1  # Lists are replaced whole.


def test_a_circle_of_files_is_told(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml")
    (tmp_path / "b.yaml").write_text("extends: a.yaml")
    with pytest.raises(UserError, match="must not extend itself"):
        load_config(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("extends: [b.yaml]")
    with pytest.raises(UserError, match="extends: must be the path of one YAML file"):
        load_config(tmp_path / "a.yaml")


def saved(folder, **columns):
    num_rows = len(next(iter(columns.values())))
    assert num_rows
    datasets.Dataset.from_dict(columns).save_to_disk(folder)
    return str(folder)


def test_columns_may_be_templates(tmp_path):
    path = saved(tmp_path / "d", context=["Ann ran.", "Bo sat."], question=["Who?", "Who sat?"], answers=[{"text": ["Ann"]}, {"text": ["Bo"]}])
    rows = read_huggingface(path, {"prompt": "{context}\nQ: {question}", "response": "{answers[text][0]}"}).train
    assert [(row.prompt, row.response) for row in rows] == [("Ann ran.\nQ: Who?", "Ann"), ("Bo sat.\nQ: Who sat?", "Bo")]
    for template in ("{contxt}", "{answers[text][3]}", "{answers.text}", "{0}", "{context"):
        with pytest.raises(UserError, match=r"columns: the template .* row 0 .*it has \['context', 'question', 'answers'\]"):
            read_huggingface(path, {"prompt": template, "response": "question"})


def test_a_source_says_how_it_is_scored_and_that_all_of_it_is_harmful(tmp_path):
    saved(tmp_path / "d", prompt=[f"q{row}" for row in range(40)], response=["no"] * 40, test_list=[["assert f()", "assert g()"]] * 40)

    def load(**settings):
        spec = SourceConfig(format="huggingface", path="d", **settings)
        return load_source(spec, data_root=str(tmp_path), sizes=SplitSizes(4, 4, 4), seed=0)

    assert load().scorer == "exact_match"
    assert load(scorer="rouge_l").scorer == "rouge_l"
    assert (load(harmful=True).scorer, load(harmful=True).test[0].harmful) == ("refusal", True)
    assert load(scorer="unit_tests", columns={"tests": "test_list"}).test[0].tests == "assert f()\nassert g()"
    with pytest.raises(UserError, match="scorer unit_tests needs 'tests' in every test row"):
        load(scorer="unit_tests")
    with pytest.raises(UserError, match="scorer refusal needs 'harmful'"):
        load(scorer="refusal")
    with pytest.raises(UserError, match="needs a split 'train_sft'"):
        load(split="train_sft")
