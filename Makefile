# The cold-start lab. `make help` explains every target; `make first`, `make report` and `make test` are all a fresh machine needs.
PYTHON ?= python3
VENV   ?= .venv
LABKIT  = $(VENV)/bin/labkit
STAMP   = $(VENV)/.labkit-setup
DEV     = $(VENV)/.labkit-dev

.DEFAULT_GOAL := help
.PHONY: help setup first report lab test test-unit format lint host-tools gpu gpu-carry gpu-rehearsal bench site clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:[^#]*## /\t/' | expand -t 15

setup: $(STAMP) ## a virtual environment with the lab in it (PyTorch's pin is the CPU build where pip has one, CUDA on a GPU host)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed: make PYTHON=python3.11 setup"; exit 2; }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV) || { echo "no venv module: apt-get install python3-venv, then again"; exit 2; }
	$(VENV)/bin/python -m pip install -q -c constraints.txt torch
	$(VENV)/bin/python -m pip install -q -c constraints.txt -e '.[rivals]'
	@touch $@

# What only tests and checks need, on top.
$(DEV): $(STAMP)
	$(VENV)/bin/python -m pip install -q -c constraints.txt -e '.[rivals,dev]'
	@touch $@

first: setup ## one cold start from nothing, its waterfall in the terminal
	$(LABKIT) run naive --blocks 1

report: setup ## what the article is worth on this host, in a quarter of an hour: report/index.html
	$(LABKIT) report --out report

lab: setup ## open the notebooks in JupyterLab
	$(VENV)/bin/jupyter lab --notebook-dir notebooks

# Python without a name ending: ruff finds it only when it is named.
PROGRAMS = setup.py scripts/gpu-rehearsal scripts/gate-last-run scripts/gate-outputs
PROSE    = docs scripts binder Makefile README.md STYLE.md CONTRIBUTING.md CHANGELOG.md

# What needs nothing but itself runs on up to four CPUs; servers, containers, snapshots and notebooks one after the other.
PARALLEL = -n logical --maxprocesses 4 --dist loadfile

test: $(DEV) ## every test this host can run; what it cannot run is skipped with its reason (LABKIT_REQUIRE=fuse,… makes that a failure); ROOM=weights: one directory's unit tests
ifdef ROOM
	$(VENV)/bin/python -m pytest tests/unit/$(ROOM)
else
	@failed=0; set -x; \
	$(VENV)/bin/python -m pytest $(PARALLEL) tests/unit tests/contract || failed=1; \
	$(VENV)/bin/python -m pytest tests/host tests/gpu tests/notebooks || failed=1; \
	exit $$failed
endif

test-unit: $(DEV) ## no server, no notebook, no container: what a change is tried with
	$(VENV)/bin/python -m pytest $(PARALLEL) tests/unit

format: $(DEV) ## ruff format, and what ruff mends by itself
	$(VENV)/bin/ruff format labkit tests examples $(PROGRAMS)
	$(VENV)/bin/ruff check --fix labkit tests examples $(PROGRAMS)

lint: $(DEV) ## format, style, types, imports (one way, no circles, every name there), spelling, notebook format
	$(VENV)/bin/ruff format --check labkit tests examples $(PROGRAMS)
	$(VENV)/bin/ruff check labkit tests examples $(PROGRAMS)
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest -q tests/unit/test_architecture.py
	@$(VENV)/bin/python -m pytest -q --collect-only >$(VENV)/collected || { tail -40 $(VENV)/collected; exit 1; }
	$(VENV)/bin/codespell labkit tests notebooks $(PROSE)
	$(LABKIT) notebooks check

host-tools: ## install what unlocks more (containers, FUSE, CRIU; Debian 12 or Ubuntu, root); says what it will do first
	scripts/host-tools

gpu: ## the article's table on a GPU: what works here, then an 8B model, in 12 minutes, into runs/gpu (with the PYTHON that has torch and CUDA)
	$(PYTHON) -m labkit.device.gpu_trials --out $(or $(OUT),runs/gpu)

gpu-carry: ## what a bare GPU machine lacks (wheels, CRIU, runc), gathered in .gpu-carry/ to be carried there; says its size
	scripts/gpu-carry

gpu-rehearsal: ## every GPU trial once with the tiny shape over a CUDA runtime that is none (its own environment: 5 GB, or GPU_ENV=DIR)
	scripts/gpu-rehearsal

bench: setup ## the lab's performance claims, measured here (about an hour; `labkit bench NAME` runs one)
	@for name in import overhead load pull convert lazy restore forecast; do echo "== $$name"; $(LABKIT) bench $$name || true; done

site: setup ## gallery of executed notebooks and recorded figures, as static HTML in site/
	$(LABKIT) site --out site

clean: ## remove what was generated here (the workspace, LABKIT_HOME or ~/.cache/labkit, is left alone)
	rm -rf .gpu-carry .gpu-rehearsal report site build dist *.egg-info .pytest_cache .hypothesis .ruff_cache
