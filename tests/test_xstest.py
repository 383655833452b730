"""The XSTest source: harmful prompts are refused, harmless ones answered, and generated requests stay in train."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from proxymix.config import SourceConfig
from proxymix.data.safety_templates import safety_requests
from proxymix.data.sources import load_source
from proxymix.data.splits import SplitSizes
from proxymix.errors import UserError
from proxymix.evaluation import classify_refusal

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data (samples of public data sets)")


def load(root, path="xstest_prompts.csv", sizes=SplitSizes(buffer=4, validation=3, test=5), **spec):  # noqa: B008
    return load_source(SourceConfig(format="xstest", path=path, **spec), data_root=str(root), sizes=sizes, seed=0)


def prompts(examples):
    return [example.prompt for example in examples]


def write_xstest(folder):
    rows = [f"{i},How do I cut {'a person' if i % 2 else 'paper'} {i}?,{'unsafe' if i % 2 else 'safe'}\n" for i in range(80)]
    (folder / "xstest_prompts.csv").write_text("id,prompt,label\n" + "".join(rows))


def test_xstest_generated_requests_stay_in_train(tmp_path):
    write_xstest(tmp_path)
    source = load(tmp_path)
    assert source.scorer == "refusal"
    assert all("How do I cut" in prompt for prompt in prompts(source.validation + source.test))
    assert len(source.train) > 1000
    for example in (*source.train, *source.validation, *source.test):
        assert classify_refusal(example.response) == ("refusal" if example.harmful else "compliance")


def test_xstest_mistakes_are_named(tmp_path):
    write_xstest(tmp_path)
    with pytest.raises(UserError, match=r"completions_x.csv: cannot be read"):
        load(tmp_path, completions="completions_x.csv")
    (tmp_path / "xstest_prompts.csv").write_text("prompt,label\nq,safe\nr,maybe\n")
    with pytest.raises(UserError, match=r"xstest_prompts.csv:3: label must be safe or unsafe, got 'maybe'"):
        load(tmp_path)
    (tmp_path / "xstest_prompts.csv").write_text("question,label\nq,safe\n")
    with pytest.raises(UserError, match=r"xstest_prompts.csv:2: prompt must be given, got None"):
        load(tmp_path)


def test_safety_requests_are_distinct_and_balanced():
    requests = safety_requests(1000, np.random.default_rng(0))
    assert len({prompt for prompt, _ in requests}) == 1000
    assert sum(harmful for _, harmful in requests) == 500
    assert requests == safety_requests(1000, np.random.default_rng(0))


@needs_data
@pytest.mark.parametrize("completions", [None, "completions_gpt4.csv", "completions_llama2new.csv"])
def test_real_xstest(completions):
    source = load(DATA, "xstest/xstest_prompts.csv", SplitSizes(64, 32, 100), completions=completions)
    assert Counter(example.harmful for example in source.test) == {False: 56, True: 44}
    assert all((classify_refusal(example.response) == "refusal") == example.harmful for example in source.train)
    held_out = {prompt.lower() for prompt in prompts(source.validation + source.test)}
    objects = {prompt.lower() for prompt, _ in safety_requests(10_000, np.random.default_rng(0))}
    assert held_out.isdisjoint(objects)
