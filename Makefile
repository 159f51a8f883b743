# Every target sets up what it needs in .venv; the second time that takes no time.
# PYTHON is the Python to start from, 3.11 or newer.
PYTHON ?= python3
RUN := .venv/bin
SETUP := $(PYTHON) .ci/setup

.DEFAULT_GOAL := help
.PHONY: help setup demo notebook test lint types bench docs clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: ## install what the demo and the notebooks need
	@$(SETUP) demo

demo: setup ## load a model; answer cold, then from the cache; then the same from Erlang
	@$(RUN)/erllama demo

notebook: setup ## open the first notebook in JupyterLab
	@$(RUN)/jupyter lab notebooks/01_first_steps.ipynb

test: ## run every check; ONLY="unit arch" runs some stages
	@$(SETUP) test
	@$(RUN)/python .ci/test $(ONLY)

lint: ## ruff and mypy
	@$(SETUP) lint
	@$(RUN)/python .ci/test lint types

types: ## mypy alone
	@$(SETUP) lint
	@$(RUN)/python .ci/test types

bench: ## run the benchmarks; ONLY="codec" runs some
	@$(SETUP) bench
	@$(RUN)/python -m benchmarks $(ONLY)

docs: ## build the documentation into build/docs
	@$(SETUP) docs
	@$(RUN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "build/docs/index.html"

clean: ## remove what was built here; compiled engines stay in the user's cache
	rm -rf .venv .cache build dist rebar_shim/_build
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
