# Needs Python 3.11 or newer and make; everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
MINUTES ?= 60
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq

.PHONY: help demo test fuzz mutate lint docs clean

help:
	@echo "make demo    build SmolLM2-135M to INT8 and INT4, verify, measure, write demo/report.html"
	@echo "make test    run the whole test suite"
	@echo "make fuzz    run hostile inputs for MINUTES=60; failing cases are saved in tests/fuzz/corpus"
	@echo "make mutate  mutation testing of the arithmetic for MINUTES=60, optionally of ROOMS='route lower'"
	@echo "make lint    ruff, mypy --strict, import rules, docs up to date"
	@echo "make docs    generate docs/cli.md, docs/benchmarks.md and the README's table"
	@echo "make clean   remove .venv, demo/ and caches"

demo: .venv/installed
	$(BIN)/python examples/demo.py

test: .venv/installed-dev
	$(BIN)/python -m pytest $(ARGS)

fuzz: .venv/installed-dev
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES)

mutate: .venv/installed-dev
	$(BIN)/python -m tests.mutation --minutes $(MINUTES) $(ROOMS)

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

docs: .venv/installed
	$(BIN)/python docs/generate.py

clean:
	rm -rf .venv demo build dist .mypy_cache .ruff_cache .import_linter_cache

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "edgekit needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml
	@echo "installing edgekit into .venv: about a minute"
	$(PIP) install -e .
	@touch $@

.venv/installed-dev: .venv/installed
	@echo "installing the test dependencies, including torch: some minutes"
	$(PIP) install -e '.[dev]'
	@touch $@
