"""Every curl of docs/service.md, run by curl itself against the service; the answers have the documented shape."""

import json
import re
import shlex
import shutil
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from fake_service import Changed

from services.app import build_app
from services.catalogue import Catalogue, entry_of

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "service.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8123"
PINNED = re.search(r"If-Match: \"([0-9a-f]{64})\"", PAGE).group(1)


def documented():
    """(command, documented answer or None) of every curl in the page; a command goes on until its quotes are closed."""
    found, command = [], ""
    lines = [line.strip() for line in PAGE.splitlines()]
    for number, line in enumerate(lines):
        if command or line.startswith("curl "):
            command = f"{command.removesuffix(chr(92))}\n{line}"
            if balanced(command) and not line.endswith("\\"):
                found.append((command.strip(), answer_below(lines[number + 1 :])))
                command = ""
    return found


def balanced(command):
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return False
    return True


def answer_below(lines):
    """The JSON block after one empty line, if there is one."""
    if len(lines) < 2 or lines[0] or not lines[1].startswith("{"):
        return None
    return json.JSONDecoder().raw_decode("\n".join(lines[1:]))[0]


@contextmanager
def served(token):
    """Its address."""
    catalogue = Catalogue([entry_of(Changed(name="proxymix", sha256=PINNED), "2"), entry_of(Changed(name="proxymix"), "1")])
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(build_app(catalogue, token=token), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def address():
    with served(None) as address:
        yield address


@pytest.fixture(scope="module")
def guarded():
    with served("sesame") as address:
        yield address


def shape(value):
    """Keys all the way down, without the names of sources."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    return [shape(inner) for inner in value] if isinstance(value, list) else type(value).__name__.replace("int", "float")


def run(command, address, token="sesame"):
    assert shutil.which("curl"), "curl is not installed; it is what the page tells people to use"
    command = shlex.split(command.replace(ADDRESS, address).replace("$PROXYMIX_TOKEN", token), comments=True)
    return subprocess.run([*command, "--fail-with-body", "--max-time", "30"], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("command", [command for command, _ in documented() if "$PROXYMIX_TOKEN" in command])
def test_the_documented_token_is_what_opens(guarded, command):
    for refused in (run(command, guarded, "another"), run(command.partition(" -H ")[0], guarded)):
        assert refused.returncode != 0
        assert json.loads(refused.stdout)["status"] == 401


@pytest.mark.parametrize(("command", "expected"), documented())
def test_the_documented_command_works(address, guarded, command, expected):
    done = run(command, guarded if "$PROXYMIX_TOKEN" in command else address)
    assert done.returncode == 0, done.stdout
    answer = json.loads(done.stdout)
    if expected is not None:
        assert shape(answer) == shape(expected)


def test_the_page_has_examples_of_everything():
    commands = " ".join(command for command, _ in documented())
    assert len(documented()) >= 12
    for path in (
        "/v1/decisions",
        "/v1/simulate",
        "/v1/controller",
        "/v1/controllers",
        "/v1/runs",
        "/health/live",
        "/health/ready",
        "If-Match",
        "Bearer",
    ):
        assert path in commands
    assert sum(answer is not None for _, answer in documented()) >= 2


def test_the_page_lists_every_route():
    document = build_app(Changed(), token=None).openapi()
    routes = {f"`{method.upper()} {path}`" for path, methods in document["paths"].items() for method in methods}
    assert len(routes) > 10
    assert {route for route in routes if route not in PAGE} == set()
