"""The page in a real headless Chromium: it renders, follows runs, answers what-if, by keyboard alone, without a word on the console.

Needs `pip install -r requirements/browser.txt` and a Chromium on the path, or its path in PROXYMIX_CHROMIUM; run with `make browser`.
"""

import itertools
import os
import re
import shutil
import socket
import threading
import time

import httpx
import pytest
import uvicorn
from fake_service import Changed, example

from services.app import build_app
from services.catalogue import Catalogue, entry_of

pytestmark = pytest.mark.browser
CARD = {
    "architecture": "equivariant",
    "seed": 3,
    "training": {"sources": ["cipher@train-0", "table@train-1"]},
    "training_cost": {"tokens": 4_920_000},
}
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def chromium():
    path = os.environ.get("PROXYMIX_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    assert path, f"no browser: none of {', '.join(NAMES)} is on the path; install Chromium or set PROXYMIX_CHROMIUM to where it is"
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.fail("playwright is not installed; pip install -r requirements/browser.txt")
    with sync_playwright() as driver:
        # Chromium's own sandbox does not start for root, as in most containers; all it loads here is our page.
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield browser
        browser.close()


@pytest.fixture
def serve():
    """Starts services; each answers on its own loopback port."""
    servers = []

    def start(**options):
        catalogue = Catalogue([entry_of(Changed(name="proxymix", card=CARD), "2"), entry_of(Changed(name="older", sha256="cd" * 32), "1")])
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(build_app(catalogue, **{"token": None, **options}), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        servers.append((server, thread, listener))
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for server, thread, listener in servers:
        server.should_exit = True
        thread.join(10)
        listener.close()


@pytest.fixture
def page(chromium, serve):
    """A tab, closed before the services are, that fails the test if anything is said on the console, or asked of another host."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    tab, said, hosts = context.new_page(), [], set()
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: hosts.add(re.match(r"\w+:(//[^:/]+)?", request.url)[0]))
    yield tab
    context.close()
    assert said == []
    assert hosts <= {"http://127.0.0.1", "data:"}


def tell(address, stage, run="demo/seed0", fallbacks=0, **headers):
    body = {**example(), "request_id": f"{run}/task2/stage{stage}", "stage_index": stage}
    sent = httpx.post(f"{address}/v1/decisions", json=body, headers={"X-Proxymix-Fallbacks": str(fallbacks), **headers}, trust_env=False)
    assert sent.status_code == 200


def test_it_shows_the_card_and_what_if_before_any_run(page, serve):
    page.goto(serve())
    page.get_by_text("No run has asked yet.").wait_for()
    page.get_by_text("any number of sources").wait_for()
    assert page.locator("#card").inner_text().count("cipher") == 1
    assert "4.92M" in page.locator("#card").inner_text()
    page.get_by_text("as decided", exact=False).last.wait_for()
    assert page.locator("#knobs input").count() == 4


def test_it_follows_runs_and_marks_fallbacks(page, serve):
    address = serve()
    tell(address, 0)
    page.goto(address)
    page.get_by_role("button", name="demo/seed0").wait_for()
    page.get_by_text("Latest: Task 3, stage 1: replay share 60 %", exact=False).wait_for()
    assert page.locator("#mixture path.area").count() == page.locator("#losses path.line").count() == 3
    tell(address, 3, fallbacks=1)
    page.get_by_text("Latest: Task 3, stage 4", exact=False).wait_for()
    assert page.locator("#mixture rect[fill='url(#hatching)']").count() == 1
    assert page.locator("#mixture rect.hole").count() == 1
    page.get_by_text("the run decided itself (fallback)", exact=False).wait_for()
    assert page.locator("#sources tr").all_inner_texts()[0].split() == ["safety", "anchor", "22", "%", "0.52", "+0.12"]


def test_a_run_that_cannot_be_read_leaves_the_others_to_be_chosen(page, serve):
    address = serve()
    tell(address, 0)
    tell(address, 0, run="broken")  # Heard of last, so it is what is looked at first.
    page.route("**/v1/runs/broken", lambda route: route.fulfill(json={}))
    page.goto(address)
    page.get_by_role("button", name="demo/seed0").click()
    page.get_by_text("Latest: Task 3, stage 1", exact=False).wait_for()


def test_it_puts_together_what_several_replicas_remember(page, serve):
    address, other = serve(), serve()
    for stage, replica in enumerate((address, other, other, address)):
        tell(replica, stage)
    turns = itertools.cycle((address, other, other))

    def to_any_replica(route):
        answer = httpx.get(route.request.url.replace(address, next(turns)), trust_env=False)
        route.fulfill(body=answer.content, content_type="application/json")

    page.route(re.compile("/v1/runs"), to_any_replica)
    page.goto(address)
    page.get_by_text("live · 2 replicas").wait_for()
    page.locator("#boundary[aria-valuemax='4']").wait_for()
    page.locator("#mixture rect.hole").wait_for(state="detached")
    tell(other, 1)  # The run resumes there.
    page.get_by_text("Latest: Task 3, stage 2", exact=False).wait_for()


def test_everything_works_from_the_keyboard(page, serve):
    address = serve()
    for stage in (0, 1, 2):
        tell(address, stage)
    tell(address, 0, run="other/seed1")
    page.goto(address)
    page.locator("#runs button").nth(1).wait_for()

    def tab_to(selector):
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        pytest.fail(f"Tab does not reach {selector}")

    tab_to("#runs li:nth-child(2) button")
    page.keyboard.press("Enter")
    page.get_by_text("Latest: Task 3, stage 3", exact=False).wait_for()
    tab_to("#boundary")
    page.keyboard.press("ArrowLeft")
    assert page.locator("#boundary").get_attribute("aria-valuetext").startswith("Task 3, stage 2: replay share")
    page.keyboard.press("Escape")
    assert page.locator("#boundary").get_attribute("aria-valuenow") == "3"
    tab_to("#controllers")
    tab_to("#knob0")
    page.keyboard.press("PageUp")
    page.get_by_text("points against the decision", exact=False).wait_for()
    assert page.locator("#knob0").get_attribute("aria-valuetext").startswith("safety, anchor: 0.78")
    tab_to("#knob-progress")
    page.keyboard.press("ArrowRight")
    assert page.locator("#knob-progress").get_attribute("aria-valuetext") == "stage 4 of 4"
    summaries = httpx.get(f"{address}/v1/runs", trust_env=False).json()["runs"]
    assert sorted(summary["num_points"] for summary in summaries) == [1, 3]  # What-if is not taken for a run's own question.


def test_the_controller_may_be_chosen(page, serve):
    page.goto(serve())
    page.get_by_label("Served here").select_option("older@1")
    page.get_by_text("cd" * 32).wait_for()


def test_names_are_text_and_nothing_else(page, serve):
    address = serve()
    tell(address, 0, run="<img src=x onerror=alert(1)>")
    page.goto(address)
    page.get_by_role("button", name="<img src=x onerror=alert(1)>").wait_for()
    assert page.locator("img").count() == 0


def test_the_token_is_asked_for_and_kept_in_the_tab_alone(page, serve):
    address = serve(token="sesame")
    tell(address, 0, Authorization="Bearer sesame")
    page.goto(address)
    page.get_by_label("This service asks for its bearer token").fill("sesame")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="demo/seed0").wait_for()
    assert page.evaluate("[sessionStorage.length, localStorage.length, document.cookie, location.search]") == [1, 0, "", ""]
    page.reload()
    page.get_by_role("button", name="demo/seed0").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [380, 1280])
def test_it_fits_and_can_be_read_in_both_schemes(page, serve, scheme, width):
    address = serve()
    tell(address, 0)
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(address)
    page.get_by_text("Latest:", exact=False).wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = (channels(page, f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
    assert (sum(ink) > sum(paper)) == (scheme == "dark")
    assert abs(sum(ink) - sum(paper)) > 500


def channels(page, expression):
    return [int(number) for number in re.findall(r"\d+", page.evaluate(expression))[:3]]
