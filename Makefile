# Four verbs: demo, test (lint included; test-all adds the slow tests), lint, bench.
# Each makes the environment it needs in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-all lint bench families clean
.DEFAULT_GOAL := test

# torch first: a range would let pip take a build with gigabytes of CUDA libraries.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable ".[all]" --group dev
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/segattn demo

test: lint
	$(BIN)/python -m pytest

test-all: lint
	$(BIN)/python -m pytest -m "slow or not slow"

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

# About ten minutes: runs every family of transformers and rewrites docs/families.md and the verified table.
families: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m families.survey
	PYTHONPATH=tests $(BIN)/python -m families.pages

clean:
	rm -rf $(VENV)

bench: $(STAMP)
	$(BIN)/python benchmarks/model_cost.py --output benchmarks/results/model_cost.json
	$(BIN)/python benchmarks/enable_cost.py --output benchmarks/results/enable_cost.json
