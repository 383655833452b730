import pytest
import yaml

from proxymix.config import Config, load_config
from proxymix.errors import UserError

MINIMAL = {"name": "demo", "sequence": {"tasks": "long@heldout-0"}}


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "config.yaml"
        path.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
        return path

    return write


def test_a_minimal_file_is_enough(write):
    config = load_config(write(MINIMAL))
    assert config.tuning.batch_size == 16
    assert [anchor.label for anchor in config.sequence.anchors] == ["safety", "general"]
    assert str(config.run_dir) == "runs/demo"


def test_overrides_are_yaml(write):
    overrides = ["tuning.batch_size=32", "controller.reward.lambda=0.5", "seeds=[1, 2]", "target.lora=null", "tuning.learning_rate=3e-4"]
    config = load_config(write(MINIMAL), overrides)
    assert (config.tuning.batch_size, config.controller.reward.lambda_, config.seeds, config.target.lora) == (32, 0.5, [1, 2], None)
    assert config.tuning.learning_rate == 3e-4


def test_sources_may_be_written_short(write):
    tasks = ["cipher@heldout-0", {"format": "jsonl", "path": "data/mine.jsonl"}]
    own = {"pretraining": {"tokenizer": "bpe"}, "controller": {"curriculum": {"num_tasks": 2, "pool": tasks}}}
    tree = MINIMAL | own | {"sequence": {"tasks": tasks, "anchors": ["safety"]}}
    cipher, mine = load_config(write(tree)).sequence.tasks
    assert (cipher.format, cipher.task, cipher.world, cipher.label) == ("builtin", "cipher", "heldout-0", "cipher")
    assert mine.label == "mine"


@pytest.mark.parametrize(
    ("change", "path", "rule"),
    [
        ({"sead": 1}, "sead", "not permitted"),
        ({"seeds": [0, -1]}, "seeds.1", "greater than or equal to 0"),
        ({"methods": ["random_101"]}, "methods.0", "match pattern"),
        ({"sequence": {"tasks": []}}, "sequence.tasks", "at least 1 item"),
        ({"sequence": {"tasks": [{"format": "jsonl", "path": "a.jsonl"}]}}, "", "pretraining.tokenizer must be bpe"),
        (
            {"sequence": {"tasks": [{"format": "jsonl", "path": "a.jsonl"}]}, "pretraining": {"tokenizer": "bpe"}},
            "",
            "controller.curriculum.pool must be given",
        ),
        ({"tuning": {"batch": 4}}, "tuning.batch", "not permitted"),
        ({"tuning": {"batch_size": "many"}}, "tuning.batch_size", "integer"),
        ({"tuning": {"batch_size": 0}}, "tuning.batch_size", "greater than or equal to 1"),
        ({"tuning": {"learning_rate": -1}}, "tuning.learning_rate", "greater than 0"),
        ({"tuning": {"probes_per_boundary": 2}}, "tuning.probes_per_boundary", "greater than or equal to 3"),
        ({"tuning": 7}, "tuning", "mapping|dictionary|valid"),
        ({"name": "a/b"}, "name", "pattern"),
        ({"seeds": []}, "seeds", "at least 1"),
        ({"sequence": {}}, "sequence.tasks", "required"),
        ({"sequence": {"tasks": [{"format": "csv"}]}}, "sequence.tasks", "jsonl"),
        ({"sequence": {"tasks": [{"format": "jsonl"}]}}, "sequence.tasks", "needs 'path'"),
        ({"proxy": {"model": {"preset": "nano", "path": "x"}}}, "proxy.model", "exactly one of"),
        ({"proxy": {"model": {}}}, "proxy.model", "exactly one of"),
        ({"target": {"lora": {"rank": 4}}}, "", "target.lora needs"),
        ({"target": {"parallelism": {"num_workers": 3}}}, "", "num_workers must divide tuning.batch_size"),
        ({"evaluation": {"tensor_parallel": 2}}, "", "evaluation.tensor_parallel must be 1 without target.parallelism.use_gpu .* got 2"),
        (
            {"target": {"model": {"preset": "nano", "implementation": "transformers"}, "lora": {"rank": 513, "merged": False}}},
            "",
            "target.lora.merged must be true .* got rank 513",
        ),
        ({"controller": {"episodes": 17}}, "", "must divide controller.episodes"),
        ({"controller": {"max_sources": 6}}, "", "got 6 for 7"),
        ({"controller": {"curriculum": {"length_range": [2, 1]}}}, "controller.curriculum", "smaller first"),
        ({"controller": {"curriculum": {"length_range": [0, 1]}}}, "controller.curriculum", "positive"),
        ({"controller": {"curriculum": {"pool": ["copy@a"], "num_tasks": 2}}}, "controller.curriculum", "at most the number"),
        ({"controller": {"curriculum": {"num_tasks": [6, 3]}}}, "controller.curriculum", "the smaller first"),
        ({"controller": {"curriculum": {"num_tasks": [3, 11]}}}, "", "must hold the anchors"),
        ({"controller": {"curriculum": {"pool": ["cipher@a", "cipher@b"], "num_tasks": 2}}}, "", "unique names"),
        ({"transfer": {"on_failure": "hope"}}, "transfer.on_failure", "fallback"),
        ({"service": {"port": 70000}}, "service.port", "65535"),
    ],
)
def test_every_mistake_is_one_message_with_the_keys_path(write, change, path, rule):
    with pytest.raises(UserError, match=rule) as caught:
        load_config(write(MINIMAL | change))
    assert f"  {path}" in str(caught.value)
    assert ", got " in str(caught.value)


def test_all_mistakes_are_told_at_once(write):
    with pytest.raises(UserError) as caught:
        load_config(write(MINIMAL | {"sead": 1, "tuning": {"batch_size": 0}}))
    assert "sead" in str(caught.value)
    assert "tuning.batch_size" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tuning.batch_size", "must be key.path=value"),
        ("=3", "must be key.path=value"),
        ("name.first=x", "'name' is not a mapping"),
        ("tuning.batch_size=[1", "not valid YAML"),
        ("tuning.sise=3", "tuning.sise"),
    ],
)
def test_a_bad_override_names_itself(write, override, message):
    with pytest.raises(UserError, match=message):
        load_config(write(MINIMAL), [override])


def test_a_file_that_cannot_be_read(tmp_path, write):
    with pytest.raises(UserError, match="cannot read"):
        load_config(tmp_path / "absent.yaml")
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(write("name: [unclosed"))
    with pytest.raises(UserError, match="must hold a mapping"):
        load_config(write("- just\n- a list\n"))
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(UserError, match="not UTF-8"):
        load_config(tmp_path / "latin.yaml")


def test_the_resolved_file_gives_the_same_config_again(write):
    tree = MINIMAL | {
        "controller": {"reward": {"kind": "paper", "lambda": 0.25}, "curriculum": {"pool": ["cipher@train-0", "copy@train-0"], "num_tasks": 2}},
        "target": {"model": {"path": "/models/big", "implementation": "transformers"}, "lora": {"rank": 8}},
    }
    config = load_config(write(tree))
    resolved = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    assert "lambda_" not in resolved
    assert load_config(write(resolved)) == config


def test_a_config_cannot_be_changed_and_every_field_says_what_it_is():
    config = Config.model_validate(MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1
    described = [field.description for field in type(config.tuning).model_fields.values()]
    assert sum(text is not None for text in described) >= len(described) - 2
