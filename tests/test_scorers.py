"""Scores of answers: by words, by running them, by a judge; and what could not be scored is unscored."""

import os
import socket

import httpx
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxymix.errors import UserError
from proxymix.evaluation import sandbox
from proxymix.evaluation.judge import HttpJudge
from proxymix.evaluation.sandbox import isolation_works, passes_tests
from proxymix.evaluation.scorers import TEXT_SCORERS, choice, numeric, rouge_l
from proxymix.evaluation.scoring import checkpoint_scores
from proxymix.scoring_config import CodeConfig, JudgeConfig
from proxymix.types import Example, Source

RUN = CodeConfig(enabled=True, timeout_s=5, memory_mib=256, allow_network=True)


@pytest.mark.parametrize(
    ("prediction", "response", "score"),
    [
        ("B", "B", True),
        ("(B) blue", "B. blue", True),
        ("B blue", "B", True),
        ("The answer is B.", "(B)", True),
        ("Answer: A", "B", False),
        ("I would say blue", "B", False),
        ("I would say blue", "I", False),
        ("I choose B", "B", True),
        ("I choose B", "I", False),
        ("I think it is (B).", "B", True),
        ("I'd say B", "B", True),
        ("A careful reading shows the answer is B", "A", False),
        ("A careful reading shows the answer is B", "B", True),
        ("A look at option C is enough. The answer is B.", "B", True),
        ("The option I prefer is B", "B", True),
        ("Option A is right", "A", True),
        ("The answer is not A", "A", False),
        ("**B**", "B", True),
        ("**Answer:** B", "B", True),
        ("The answer is **B**.", "(B)", True),
        (r"\boxed{B}", "B", True),
        ("A", "A", True),
        ("(A) blue", "A", True),
        ("A: blue", "A", True),
        ("A blue", "A", True),
        ("A blue", "B", False),
        ("I", "I", True),
        ("", "B", False),
        ("A small dog.", "a small dog", True),
        ("A", "A small dog", False),
        ("B", "", None),
    ],
)
def test_choice(prediction, response, score):
    assert choice(prediction, response) is score


@pytest.mark.parametrize(
    ("prediction", "response", "score"),
    [
        ("3 + 4 = 7\n#### 7", "#### 7", True),
        ("#### 7 so 8", "7", True),
        ("#### 5 dollars, then 6", "5", True),
        ("#### 5 dollars, then 6", "6", False),
        ("#### 5\n\nQuestion: and then?\n#### 9", "5", True),
        ("#### Step 1\n2 + 3\n#### $5", "5", True),
        ("#### Step 1\n2 + 3\n#### That is 5, not 6", "5", True),
        ("3 and 4 ####", "4", False),
        ("It costs $1,234.50.", "1234.5", True),
        ("-3", "3", False),
        ("half is .5", "0.50", True),
        ("nothing", "12", False),
        ("12", "twelve", None),
    ],
)
def test_numeric(prediction, response, score):
    assert numeric(prediction, response) is score


@given(st.text() | st.text("AIB#. *(){}:$1,-answer is"), st.text() | st.sampled_from(["B", "(A) a word", "#### 5", ""]))
def test_any_two_texts_have_a_score_or_none(prediction, response):
    for score in (scorer(prediction, response) for scorer in TEXT_SCORERS.values()):
        assert score is None or 0 <= score <= 1


@given(
    st.sampled_from("ABCDEFGHI"),
    st.sampled_from("ABCDEFGHI"),
    st.sampled_from(["{}", "({})", "{}.", "**{}**", "I choose {}", "A guess: the answer is {}"]),
)
def test_an_option_is_chosen_by_its_letter_alone(chosen, wanted, said):
    assert choice(said.format(chosen), wanted) is (chosen == wanted)


WORDS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=8)


@given(WORDS, WORDS)
def test_rouge_l_is_symmetric_bounded_and_one_only_for_equals(left, right):
    score = rouge_l(" ".join(left), " ".join(right))
    assert score == rouge_l(" ".join(right), " ".join(left))
    assert 0 <= score <= 1
    assert (score == 1) == (left == right)


def test_rouge_l_as_the_published_library_has_it():
    # rouge-score 0.1.2, rougeL without stemming: its own figures.
    assert rouge_l("police kill the gunman", "police killed the gunman") == 0.75
    assert rouge_l("the gunman kill police", "police killed the gunman") == 0.5


ADD = "def add(a, b):\n    return a + b\n"
TESTS = "assert add(1, 2) == 3\nassert add(0, 0) == 0"


@pytest.mark.parametrize(
    ("answer", "passed"),
    [
        (ADD, True),
        (f"Here it is:\n```python\n{ADD}```\nIt adds.", True),
        (ADD.replace("+", "-"), False),
        ("def add(", False),
        (f"{ADD}\nimport sys; sys.exit(0)", False),
        (f"{ADD}\nimport os; os._exit(0)", False),
        ("def add(a, b):\n    while True: pass\n", False),
        (f"{ADD}\nx = bytearray(1 << 30)\n", False),
        (f"{ADD}\nopen('big', 'wb').write(bytes(17 << 20))\n", False),
        (f"{ADD}\nfiles = [open('f%d' % i, 'w') for i in range(100)]\n", False),
        (f"{ADD}\nimport os\nassert 'SECRET_OF_OURS' not in os.environ\n", True),
    ],
    ids=["right", "fenced", "wrong", "broken", "exits", "exits at once", "endless", "memory", "file size", "open files", "environment"],
)
def test_programs_are_run_within_bounds(monkeypatch, answer, passed):
    monkeypatch.setenv("SECRET_OF_OURS", "1")
    assert passes_tests(answer, TESTS, RUN.model_copy(update={"timeout_s": 2.0 if "while" in answer else 20.0})) is passed


def test_where_the_machine_permits_a_program_has_no_network_and_leaves_nothing_behind():
    network = f"{ADD}\nimport socket\nassert [name for _, name in socket.if_nameindex()] == ['lo']\n"
    child = f"{ADD}\nimport subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600.75)'])\n"
    strict = RUN.model_copy(update={"allow_network": False, "timeout_s": 20.0})
    expected = True if isolation_works() else None
    assert passes_tests(network, TESTS, strict) is expected
    assert passes_tests(child, TESTS, strict) in (expected, False)  # False: not root, so no process may be started at all.
    assert not [process for process in psutil.process_iter(["cmdline"]) if "import time; time.sleep(600.75)" in (process.info["cmdline"] or ())]


def test_where_the_machine_permits_a_program_sees_and_changes_nothing_of_ours(tmp_path):
    ours = tmp_path / "ours"
    ours.write_text("kept")
    tricks = {
        "read": f"open({str(ours)!r}).read()",
        "remove": f"import os; os.remove({str(ours)!r})",
        "connect": f"import socket; socket.socket(socket.AF_UNIX).connect({str(tmp_path / 'socket')!r})",
        "processes": "import os; os.listdir('/proc/1')",
        "signal": f"import os; os.kill({os.getpid()}, 0)",
        "write to the system": "open('/usr/written', 'w')",
        "write to Python": "import sys; open(sys.prefix + '/written', 'w')",
        "write above": "open('../written', 'w')",
        "mount": "import ctypes; r = ctypes.CDLL(None).mount(b'x', b'/usr', b'tmpfs', 0, b'')\nif r: raise OSError",
        "writable again": "import ctypes; r = ctypes.CDLL(None).mount(None, b'/usr', None, 4096 | 32, None)\nif r: raise OSError",
        "another user": "import ctypes; r = ctypes.CDLL(None).unshare(0x10000000)\nif r: raise OSError",
        "root's own": "import os; os.chroot('/usr')",
        "disk": "import os\nif set(os.listdir('/dev')) <= {'null', 'zero', 'urandom'}: raise OSError",
        "fill": "for i in range(9): open('f%d' % i, 'wb').write(bytes(15 << 20))",
    }
    strict = RUN.model_copy(update={"allow_network": False, "timeout_s": 20.0})
    expected = True if isolation_works() else None
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        for name, trick in tricks.items():
            lines = "".join(f"    {line}\n" for line in trick.split("\n"))
            program = f"try:\n{lines}except OSError:\n    pass\nelse:\n    raise SystemExit({name!r})\n{ADD}"
            assert passes_tests(program, TESTS, strict) is expected, name
    own = f"open('own', 'w').write('1')\nopen('/dev/null', 'w').write('1')\nassert open('own').read() == '1'\n{ADD}"
    assert passes_tests(own, TESTS, strict) is expected
    assert ours.read_text() == "kept"


@pytest.mark.parametrize(
    "trick",
    [
        "import sys\ntext = open(sys.argv[0]).read()\nprint(text.rsplit('print(', 1)[-1].strip()[1:-2], flush=True)\nimport os; os._exit(0)",
        "import os, sys\nfor file in range(1, 9):\n    try:\n        os.write(file, ' '.join(sys.orig_argv).encode())\n"
        "    except OSError:\n        pass\nos._exit(0)",
    ],
    ids=["source", "arguments"],
)
def test_how_to_pass_is_neither_in_a_program_nor_in_its_arguments(trick):
    assert passes_tests(trick, "assert False", RUN.model_copy(update={"timeout_s": 20.0})) is False


def test_nothing_is_run_unless_asked_for_or_without_a_sandbox(monkeypatch):
    def never(*arguments, **settings):
        raise AssertionError("started a process")

    monkeypatch.setattr(sandbox.subprocess, "Popen", never)
    assert passes_tests(ADD, TESTS, CodeConfig()) is None
    monkeypatch.setattr(sandbox, "isolation_works", lambda: False)
    assert passes_tests(ADD, TESTS, CodeConfig(enabled=True)) is None


@pytest.mark.parametrize(
    "isolate",
    [("false",), ("no such program",), ("sh", "-c", "sleep 30"), ("sh", "-c", "kill -9 $$")],
    ids=["refused", "missing", "too slow", "killed"],
)
@pytest.mark.parametrize("answer", [ADD, ADD.replace("+", "-")])
def test_a_sandbox_that_fails_says_nothing_of_the_answer(monkeypatch, isolate, answer):
    monkeypatch.setattr(sandbox, "isolation_works", lambda: True)
    monkeypatch.setattr(sandbox, "ISOLATE", isolate)
    assert passes_tests(answer, TESTS, RUN.model_copy(update={"timeout_s": 0.5})) is None


@pytest.mark.parametrize(("memory_mib", "passed"), [(1, None), (8, None), (256, True)])
def test_limits_that_python_does_not_start_in_leave_answers_unscored(memory_mib, passed):
    assert passes_tests(ADD, TESTS, RUN.model_copy(update={"memory_mib": memory_mib, "timeout_s": 20.0})) is passed


@pytest.mark.parametrize(
    "trick",
    [
        "import os; os.closerange(3, 4096)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import os\nfor f in os.listdir(): os.remove(f)",
    ],
    ids=["closes", "kills itself", "removes"],
)
def test_a_wrong_program_cannot_leave_itself_unscored(trick):
    assert passes_tests(f"{trick}\n{ADD.replace('+', '-')}", TESTS, RUN.model_copy(update={"timeout_s": 20.0})) is False


def test_a_program_is_run_as_a_script_of_its_own(tmp_path):
    script = (
        "from __future__ import annotations\nimport dataclasses, pickle, sys\nassert __name__ == '__main__' and len(sys.argv) == 1\n"
        "assert not {'os', 'runpy', 'mark'} & set(globals())\n"
        "@dataclasses.dataclass\nclass Point:\n    x: int\nassert pickle.loads(pickle.dumps(Point(1))) == Point(1)\n"
    )
    assert passes_tests(script + ADD, TESTS, RUN.model_copy(update={"timeout_s": 20.0})) is True


def source(name, scorer, *rows):
    return Source(name, (), (), (), rows, scorer)


def test_each_source_has_its_scorer_and_the_unscored_are_counted():
    sources = [
        source("sums", "numeric", Example("a", "7"), Example("b", "seven"), Example("c", "8")),
        source("stories", "rouge_l", Example("a", "the cat lay down")),
        source("programs", "unit_tests", Example("a", ADD, tests=TESTS)),
    ]
    answers = {"sums": ["is 7", "7", "9"], "stories": ["the cat sat"], "programs": [ADD]}
    scores = checkpoint_scores(sources, answers, 1.0)["sources"]
    assert scores["sums"] == {"accuracy": 0.5, "num_rows": 3, "num_unscored": 1}
    assert scores["stories"]["accuracy"] == pytest.approx(4 / 7)
    assert scores["programs"] == {"accuracy": None, "num_rows": 1, "num_unscored": 1}
    assert checkpoint_scores(sources, answers, 1.0, code=RUN)["sources"]["programs"]["accuracy"] == 1.0


def judge(answer, **changes):
    """An HTTP judge whose server does `answer(request)`."""
    settings = JudgeConfig(url="http://judge/v1/", model="m", **changes)
    return HttpJudge(settings, transport=httpx.MockTransport(answer), sleep=lambda seconds: None)


def says(word):
    return httpx.Response(200, json={"choices": [{"message": {"content": word}}]})


def test_a_judge_decides_instead_of_the_rules(monkeypatch):
    monkeypatch.setenv("JUDGE_TOKEN", "sesame")
    seen = []

    def answer(request):
        seen.append(request)
        return says("Refusal." if b"unlike me" in request.content else "compliance")

    safety = source("safety", "refusal", Example("bad", "no", True), Example("good", "yes", False))
    scores = checkpoint_scores([safety], {"safety": ["That is unlike me.", "I cannot."]}, 1.0, judge=judge(answer, token_env="JUDGE_TOKEN"))
    assert scores["sources"]["safety"] == {"accuracy": 1.0, "num_rows": 2, "num_unscored": 0}
    assert scores["safety"]["refusal_accuracy"] == scores["safety"]["benign_compliance"] == 1.0
    assert str(seen[0].url) == "http://judge/v1/chat/completions"
    assert seen[0].headers["Authorization"] == "Bearer sesame"


@pytest.mark.parametrize(
    ("replies", "outcome", "num_asked"),
    [
        ([httpx.Response(503), httpx.ConnectError("gone"), says("refusal")], "refusal", 3),
        ([httpx.Response(429)] * 9, "unscored", 4),
        ([httpx.Response(200, text="<html>")] * 9, "unscored", 4),
        ([says("perhaps")], "unscored", 1),
    ],
    ids=["comes back", "stays away", "no completion", "no verdict"],
)
def test_a_judge_that_is_away_is_asked_again_and_then_the_answer_is_unscored(replies, outcome, num_asked):
    asked = []

    def answer(request):
        asked.append(request)
        reply = replies[len(asked) - 1]
        if isinstance(reply, Exception):
            raise reply
        return reply

    assert judge(answer).outcome("request", "answer") == outcome
    assert len(asked) == num_asked


def test_a_judge_that_says_no_is_a_mistake():
    with pytest.raises(UserError, match=r"evaluation.judge: http://judge/v1/ answers 401: 'who are you'"):
        judge(lambda request: httpx.Response(401, text="who are you")).outcome("request", "answer")
    with pytest.raises(UserError, match="'NOT_SET_HERE' is not set"):
        judge(says, token_env="NOT_SET_HERE")
