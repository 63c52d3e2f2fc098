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
TO_DOCUMENT := $(VENV)/.installed-to-document

.DEFAULT_GOAL := help
.PHONY: help demo test lint types layers docs notebooks format clean

help:  ## list the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort

# torch goes first and pinned: asked for as a range, pip would take the newest build, which
# brings gigabytes of CUDA packages along.
$(TO_RUN): pyproject.toml $(CONSTRAINTS)
	@echo "Making $(VENV): some minutes, without a word from pip"
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$$(grep '^torch==' $(CONSTRAINTS))"
	$(PIP) -c $(CONSTRAINTS) -e ".[pandas,parquet,plot,verify]"
	@touch $@

$(TO_DEVELOP): $(TO_RUN)
	$(PIP) -c $(CONSTRAINTS) -e ".[test]"
	@touch $@

$(TO_DOCUMENT): $(TO_DEVELOP)
	$(PIP) -c $(CONSTRAINTS) -e ".[docs,notebooks,test]"
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

# From nothing each time, so that what is no longer there is not on the site, and warnings come again.
docs: $(TO_DOCUMENT)  ## build the site into docs/_build/html
	rm -rf docs/_build docs/_generated docs/api
	$(BIN)/python -m sphinx -E -W --keep-going -q -b html docs docs/_build/html
	$(BIN)/python docs/_check.py docs/_build/html
	@echo "Open docs/_build/html/index.html"

# nbmake executes copies: the committed files stay as they are. Options of `make test` are left out,
# because they would import the scripts beside the notebooks to look for doctests.
notebooks: $(TO_DOCUMENT)  ## execute all notebooks from the beginning
	cache=$$(mktemp -d) && trap 'rm -rf "$$cache"' EXIT && \
	ESM2_FEATURES_CACHE="$$cache" $(BIN)/python -m pytest -o addopts= -p no:cacheprovider \
		--nbmake --nbmake-timeout=300 --durations=0 notebooks/*.ipynb

format: $(TO_DEVELOP)  ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and everything generated
	rm -rf $(VENV) demo docs/_build docs/_generated docs/api docs/examples/*.ipynb .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
