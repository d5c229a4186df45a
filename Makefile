# `make quickstart` and `make test` need Python ≥ 3.11, make and a package index, nothing else.
SUPPORTED = import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3; do \
	$$p -c '$(SUPPORTED)' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN = $(VENV)/bin
VERSION = $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
CONSTRAINTS = $(wildcard constraints/$(VERSION).txt)

.PHONY: help quickstart test coverage test-all lint types docs bench wheel clean
help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

quickstart: $(VENV)/installed ## set up, show the edge of stability on real data (two to three minutes)
	$(BIN)/lmech reproduce edge_of_stability

# Most of the fast tests' time is XLA's: at its lowest level of optimization they take half of it.
test: $(VENV)/installed-dev ## set up, run the fast tests (about ten minutes)
	XLA_FLAGS=--xla_backend_optimization_level=0 $(BIN)/python -m pytest -n 2 -m "not slow and not slurm"

coverage: $(VENV)/installed-dev ## the fast tests with the share of lmech's lines that they run; under 90 % is an error
	XLA_FLAGS=--xla_backend_optimization_level=0 COVERAGE_CORE=$(if $(filter 3.11,$(VERSION)),ctrace,sysmon) \
		$(BIN)/python -m pytest -n 2 -m "not slow and not slurm" --cov --cov-report=term:skip-covered

test-all: $(VENV)/installed-dev ## all tests, the slow ones too
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/installed-dev ## ruff: lint and format; the floors: who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/installed-dev ## mypy
	$(BIN)/mypy

docs: $(VENV)/installed-dev ## the documentation as a site, build/docs/index.html; a warning is an error
	$(BIN)/python -m sphinx -q -E -W --keep-going -c docs . build/docs

bench: $(VENV)/installed-dev ## costs as ratios, into bench-results/ (hours); TABLE=steps: one; BENCH=--help: which
	$(BIN)/python -m scripts.bench $(TABLE) $(BENCH)

wheel: $(VENV)/installed-dev ## build dist/*.whl
	$(BIN)/python -m build --wheel

$(VENV)/bin/python:
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(SUPPORTED)' \
		|| { echo "lmech needs Python 3.11, 3.12 or 3.13: make PYTHON=/path/to/python …"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml $(CONSTRAINTS)
	$(BIN)/python -m pip install --quiet $(addprefix --constraint ,$(CONSTRAINTS)) --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/bin/python pyproject.toml $(CONSTRAINTS)
	$(BIN)/python -m pip install --quiet $(addprefix --constraint ,$(CONSTRAINTS)) --editable '.[dev]'
	@touch $@ $(VENV)/installed

clean: ## remove the environment and caches
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .jax_cache
