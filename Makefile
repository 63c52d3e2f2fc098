# Two commands for a newcomer: `make demo` and `make test`. Both make their environment first,
# which is quick the second time.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := .ci/constraints.txt
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# An environment is there when its stamp is newer than what it was made from.
TO_RUN := $(VENV)/.installed-to-run
TO_DEVELOP := $(VENV)/.installed-to-develop

.DEFAULT_GOAL := help
.PHONY: help demo test lint types layers format clean

help:  ## list the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort

# torch goes first and pinned: asked for as a range, pip would take the newest build, which
# brings gigabytes of CUDA packages along.
$(TO_RUN): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$$(grep '^torch==' $(CONSTRAINTS))"
	$(PIP) -c $(CONSTRAINTS) -e ".[plot]"
	@touch $@

$(TO_DEVELOP): $(TO_RUN)
	$(PIP) -c $(CONSTRAINTS) -e ".[test]"
	@touch $@

demo: $(TO_RUN)  ## embed real peptides, cross-validate a classifier on them, draw a map
	$(BIN)/esm2-features demo --output demo

test: $(TO_DEVELOP)  ## run all tests
	$(BIN)/python -m pytest

lint: $(TO_DEVELOP)  ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(TO_DEVELOP)  ## check types
	$(BIN)/mypy

layers: $(TO_DEVELOP)  ## check that nothing imports upwards
	$(BIN)/lint-imports

format: $(TO_DEVELOP)  ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and everything generated
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
