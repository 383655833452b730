"""The page stands alone, says what the files say, and is written for a run of any age."""

import re
import shutil
from html.parser import HTMLParser

import pytest
from fake_run import METHODS, TASKS, build_fake_run

from proxymix.artifacts import read_json, write_json, write_jsonl, write_text
from proxymix.errors import UserError
from proxymix.report import write_report
from proxymix.report.diagnostics import phase_seconds, unfinished_phases
from proxymix.report.run_data import read_rows, read_run
from proxymix.report.verdict import pilot_cost_sentence
from proxymix.summary import summarise
from proxymix.table import COLUMNS, anchor_columns, cell

SECTIONS = ["table", "mixtures", "losses", "accuracy", "mirroring", "learning", "cost", "time", "config"]


class Page(HTMLParser):
    """Sections in order, table cells by `method/metric`, SVG labels, ids, addresses, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sections, self.cells, self.labels, self.ids, self.addresses, self.words = [], {}, [], [], [], []
        self._cell = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids += [given["id"]] if "id" in given else []
        self.addresses += [value for key, value in attrs if key in ("src", "href", "xlink:href", "srcset", "action")]
        if tag == "section":
            self.sections.append(given["id"])
        if tag == "svg":
            self.labels.append(given["aria-label"])
        if tag == "td":
            self._cell = given["data-metric"]
            self.cells[self._cell] = ""

    def handle_endtag(self, tag):
        if tag == "td":
            self._cell = None

    def handle_data(self, data):
        self.words.append(data)
        if self._cell:
            self.cells[self._cell] += data


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "fake"
    build_fake_run(folder)
    text = write_report(folder).read_text()
    return folder, text, Page(text)


def test_every_section_in_order_and_none_missing(finished):
    _, text, page = finished
    assert page.sections == SECTIONS
    assert "not there yet" not in text.lower()


def test_the_page_stands_alone(finished):
    _, text, page = finished
    assert page.addresses
    assert all(address.startswith("#") for address in page.addresses)
    assert not re.search(r"url\((?!#)|@import|<script|<link", text)


def test_ids_are_unique_and_inner_references_resolve(finished):
    _, text, page = finished
    assert len(page.ids) == len(set(page.ids))
    referred = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    assert referred <= set(page.ids)


def test_table_shows_what_metrics_json_says(finished):
    folder, _, page = finished
    metrics = read_json(folder / "metrics.json")
    columns = COLUMNS + anchor_columns(metrics)
    assert len(page.cells) == len(METHODS) * len(columns)
    for method, row in metrics["methods"].items():
        for column in columns:
            assert page.cells[f"{method}/{column.key}"] == " ".join(filter(None, cell(column, row[column.key])))


def test_every_figure_is_described_and_saved(finished):
    folder, _, page = finished
    plots = sorted((folder / "plots").glob("*.png"))
    assert len(plots) == len(page.labels) == 3 + 2 * len(METHODS) + 2 + 3 + 1 + 2
    assert all(len(label) > 20 for label in page.labels)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in plots)


def test_figures_follow_light_and_dark(finished):
    _, text, _ = finished
    body = text[text.index("<body>") :]
    assert "var(--ink)" in body
    assert "#1d2126" not in body


def test_fallback_is_told(finished):
    _, text, _ = finished
    assert "1 of 60 decisions (hatched) used the declared fallback mixture: controller away: timeout." in text


def test_a_row_that_was_partly_fallback_says_so(finished):
    _, text, page = finished
    assert text.count("→ fallback 1.7\u00a0%") == 1
    said = "1.7\u00a0% of the stages of ProxyMix were tuned on the declared fallback mixture, not on the controller&#39;s. ProxyMix ended at AA"
    assert f'id="verdict">{said}' in text
    assert "proxymix/balanced" in page.cells


def test_a_running_run_does_not_report_on_itself(finished):
    folder, text, _ = finished
    assert read_json(folder / "manifest.json")["status"] == "running"
    assert "<span>running</span>" not in text
    assert "&#34;running&#34;" not in text
    assert "Begun but not ended" not in text


def test_phases_add_up_over_resumed_runs():
    def event(phase, kind, **facts):
        return {"time": 0.0, "phase": phase, "event": kind, **facts}

    events = [event("train_controller", "start"), event("train_controller", "failed", seconds=5.0)]
    events += [event("tune_target", "start"), event("evaluate", "start"), event("evaluate", "failed", seconds=1.0), event("report", "start")]
    events += [event("train_controller", "start"), event("train_controller", "end", seconds=7.5)]
    assert phase_seconds(events) == {"train_controller": 12.5, "evaluate": 1.0}
    assert unfinished_phases(events) == {"begun": ["tune_target"], "failed": ["evaluate"]}


def test_the_papers_reward_has_no_reference(tmp_path):
    folder = tmp_path / "fake"
    build_fake_run(folder, seeds=(0,), methods=["proxymix"])
    path = folder / "controller/learning_curve.jsonl"
    assert ">reference</text>" in write_report(folder).read_text()
    write_jsonl(path, [row | {"reference_mean": None} for row in read_rows(path)])
    text = write_report(folder).read_text()
    assert "20 iterations, 320 proxy episodes." in text
    assert "this reward has no reference" in text
    assert ">reference</text>" not in text


def test_lost_episodes_are_told_where_the_learning_is(tmp_path):
    folder = tmp_path / "fake"
    build_fake_run(folder, seeds=(0,), methods=["proxymix"])
    path = folder / "controller/learning_curve.jsonl"
    assert "lost with an env runner" not in write_report(folder).read_text()
    write_jsonl(path, [row | {"num_dropped": 8 * (row["iteration"] in (3, 5))} for row in read_rows(path)])
    assert "16 more episodes were lost with an env runner that died or hung, and run again." in write_report(folder).read_text()


def test_a_run_that_is_only_partly_tuned_and_of_unknown_cost(tmp_path):
    folder = tmp_path / "fake"
    config = build_fake_run(folder, seeds=(0,), methods=["proxymix", "no_replay", "random_30"])
    shutil.rmtree(folder / "target/no_replay")
    path = folder / "target/random_30/seed0/accuracy.json"
    unscored = {"matrix": [[None] * 5] * 5, "anchor_accuracy": {"safety": [None] * 5, "general": [None] * 5}, "safety": [None] * 5}
    write_json(path, read_json(path) | unscored)
    (folder / "costs.jsonl").unlink()
    write_json(folder / "metrics.json", summarise(config, folder))
    page = Page(write_report(folder).read_text())
    assert {page.cells[f"{method}/{key}"] for method in ("no_replay", "random_30") for key in ("AA", "SS", "balanced", "total_cost")} == {"–"}
    assert page.cells["proxymix/policy_cost"] == "–"
    assert not [label for label in page.labels if "under Random" in label and label.startswith("Accuracy")]


def test_plots_of_a_removed_method_go_and_other_files_stay(tmp_path):
    folder = tmp_path / "fake"
    build_fake_run(folder, seeds=(0,), methods=["proxymix", "random_30"])
    write_report(folder)
    write_text(folder / "plots/mine.png", "another hand's")
    shutil.rmtree(folder / "target/random_30")
    before = {path.name for path in (folder / "plots").iterdir()}
    write_report(folder)
    assert before - {path.name for path in (folder / "plots").iterdir()} == {"losses-random_30.png", "accuracy-random_30.png"}


def test_pilots_cost_is_told_only_where_counted():
    assert pilot_cost_sentence({}, {"training_flops": 4e12}) == ""
    assert pilot_cost_sentence({"num_tokens": 1234567}, None) == "The pilots were tuned on 1,234,567 tokens."
    told = "The pilots took 1e+12 floating-point operations, 0.25 times the controller's training."
    assert pilot_cost_sentence({"training_flops": 1e12, "num_tokens": 5}, {"training_flops": 4e12}) == told


def test_one_run_one_page(tmp_path):
    folders = [tmp_path / name / "fake" for name in ("first", "second")]
    for folder in folders:
        build_fake_run(folder, seeds=(0,), methods=["proxymix"])
        write_text(folder / "config.yaml", "name: fake\nmethods: [proxymix]\n")
    first, second = (write_report(folder).read_text() for folder in folders)
    assert first == second


@pytest.mark.parametrize(
    ("gone", "told"),
    [
        ("config.yaml", "the resolved configuration"),
        ("manifest.json", "the manifest"),
        ("metrics.json", "scores of the methods"),
        ("mirroring.json", "the mirroring check"),
        ("events.jsonl", None),
        ("controller", "the learning curve"),
        ("target/proxymix", "decisions of ProxyMix"),
        ("target", "scores of any method"),
        ("base", None),
    ],
)
def test_survives_what_is_missing(finished, tmp_path, gone, told):
    folder = tmp_path / "fake"
    shutil.copytree(finished[0], folder, ignore=shutil.ignore_patterns("random_*", "ramp_*", "seed2", "plots"))
    path = folder / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = write_report(folder).read_text()
    assert Page(text).sections == SECTIONS
    assert told is None or f"Not there yet: {told}" in text


def test_an_empty_folder_has_a_page_and_no_folder_has_none(tmp_path):
    text = write_report(tmp_path).read_text()
    assert Page(text).sections == SECTIONS
    assert text.count("Not there yet") == len(SECTIONS) + 2  # the verdict, and the manifest beside the config
    with pytest.raises(UserError, match="must exist"):
        write_report(tmp_path / "nowhere")


def test_a_run_stopped_in_its_first_stages(tmp_path):
    folder = tmp_path / "fake"
    build_fake_run(folder, seeds=(0,), methods=["proxymix", "random_30"])
    path = folder / "target/proxymix/seed0/decisions.jsonl"
    rows = read_rows(path)
    for kept in (0, 1):
        write_jsonl(path, rows[:kept])
        write_jsonl(folder / "controller/learning_curve.jsonl", read_rows(folder / "controller/learning_curve.jsonl")[:1])
        write_report(folder)
    report = folder / "target/proxymix/seed0/accuracy.json"
    scored = read_json(report)
    write_json(report, scored | {"matrix": [scored["matrix"][0]] + [[None] * len(TASKS)] * (len(TASKS) - 1), "base": {}})
    write_report(folder)


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2')
    assert read_rows(path) == [{"a": 1}]


def test_names_are_escaped(tmp_path):
    folder = tmp_path / "fake"
    build_fake_run(folder, seeds=(0,), methods=["proxymix"])
    hostile = '<img src="http://x">&'
    for name in ("decisions.jsonl", "accuracy.json"):
        path = folder / "target/proxymix/seed0" / name
        path.write_text(path.read_text().replace("table_small", hostile.replace('"', '\\"')))
    assert "<img" not in write_report(folder).read_text()


def test_run_data_keeps_the_configs_order(finished):
    data = read_run(finished[0])
    assert data.methods == METHODS
    assert data.tasks == TASKS
    assert data.anchors == ["safety", "general"]
    assert data.runs[0].task_starts == [0, 48, 96, 144, 192]
