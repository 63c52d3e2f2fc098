# Two commands for a newcomer: `make demo` and `make test`. Both make their environment first,
# which is quick the second time.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := .ci/constraints.txt
READY := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test lint types layers format clean

help:  ## list the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort

# torch goes first and pinned: asked for as a range, pip would take the newest build, which
# brings gigabytes of CUDA packages along.
$(READY): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' $(CONSTRAINTS))"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e ".[test]"
	@touch $@

demo: $(READY)  ## embed real peptides, cross-validate a classifier on them, draw a map
	$(BIN)/esm2-features demo --output demo

test: $(READY)  ## run all tests
	$(BIN)/python -m pytest

lint: $(READY)  ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## check types
	$(BIN)/mypy

layers: $(READY)  ## check that nothing imports upwards
	$(BIN)/lint-imports

format: $(READY)  ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and everything generated
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
