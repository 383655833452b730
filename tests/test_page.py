"""The page without a browser: what is served, to whom, under which policy, and that it needs nothing from elsewhere."""

import re
from importlib.resources import files

import pytest
from fake_service import client

NAMES = ("index.html", "page.css", "page.js")
BUNDLE = {name: files("services.page").joinpath(name).read_text(encoding="utf-8") for name in NAMES}
SVG = "http://www.w3.org/2000/svg"


@pytest.mark.parametrize("token", [None, "sesame"])
def test_the_page_is_open_and_its_data_is_not(token):
    service = client(token=token)
    for path, kind in (("/", "text/html"), ("/page/page.css", "text/css"), ("/page/page.js", "text/javascript")):
        answer = service.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (200, f"{kind}; charset=utf-8")
    for path in ("/v1/runs", "/v1/runs/some/run", "/v1/controllers"):
        assert service.get(path).status_code == (401 if token else 200)


def test_the_page_knows_whether_to_ask_for_a_token_and_holds_none():
    assert 'data-guarded="false"' in client().get("/").text
    guarded = client(token="sesame").get("/").text
    assert 'data-guarded="true"' in guarded
    assert "sesame" not in guarded


def test_the_policy_allows_this_host_alone():
    for path in ("/", "/page/page.css", "/page/page.js"):
        headers = client().get(path).headers
        policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", ["__init__.py", "index.html", "..%2Fapp.py", "../app.py", "%2e%2e/app.py", "nothing", ""])
def test_nothing_but_the_bundle_is_served(name):
    answer = client().get(f"/page/{name}")
    assert answer.status_code == 404
    assert "import" not in answer.text


@pytest.mark.parametrize("name", NAMES)
def test_nothing_in_the_bundle_comes_from_elsewhere_or_runs_inline(name):
    text = BUNDLE[name].replace(SVG, "")
    assert re.findall(r"(?:https?:|[\"'(]//|@import|url\((?!#)|innerHTML|outerHTML|insertAdjacent|\beval\b|new Function)", text) == []
    if name == "index.html":
        assert re.findall(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text) == []


def test_every_control_has_a_label_and_every_id_of_the_script_exists():
    html = BUNDLE["index.html"]
    ids = set(re.findall(r'\bid="([^"]+)"', html))
    assert set(re.findall(r'\$\("([^"]+)"\)', BUNDLE["page.js"])) <= ids
    assert set(re.findall(r'(?:for|aria-labelledby|aria-describedby)="([^"]+)"', html)) <= ids
    assert '<html lang="en"' in html


def test_addresses_are_relative_so_that_a_proxy_may_put_the_page_anywhere():
    assert re.findall(r'(?:href|src)="/', BUNDLE["index.html"]) == []
    assert re.findall(r'["`]/(?:v1|page)', BUNDLE["page.js"]) == []
