# Needs Python 3.11 or newer and make; everything else is set up here, in .venv.
PYTHON ?= python3
BIN := .venv/bin
MINUTES ?= 60
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq

.PHONY: help demo test fuzz mutate lint docs clean

help:
	@echo "make demo    build SmolLM2-135M to INT8 and INT4, verify, measure, write demo/report.html"
	@echo "make test    run the whole test suite"
	@echo "make fuzz    feed edgekit hostile inputs for MINUTES=60; what fails is kept in tests/fuzz/corpus"
	@echo "make mutate  change the arithmetic one place at a time for MINUTES=60 (ROOMS='route lower'): do tests notice?"
	@echo "make lint    ruff, mypy --strict, import rules, docs up to date"
	@echo "make docs    write docs/cli.md, docs/benchmarks.md and the README's table from what they are made of"
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
	@echo "installing what the tests need, torch among it: some minutes"
	$(PIP) install -e '.[dev]'
	@touch $@
