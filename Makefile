# Two commands for a newcomer: `make demo` and `make test`. Both make their environment first,
# which is quick the second time.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := .ci/constraints.txt
INSTALL := -m pip install --quiet --disable-pip-version-check
PIP := $(BIN)/python $(INSTALL)
# A worker for each core; tests that share an expensive start-up go to the same worker.
PARALLEL := --numprocesses=logical --maxprocesses=8 --dist=loadgroup

# An environment is there when its stamp is newer than what it was made from.
TO_RUN := $(VENV)/.installed-to-run
TO_DEVELOP := $(VENV)/.installed-to-develop
TO_BROWSE := $(VENV)/.installed-to-browse
TO_DOCUMENT := $(VENV)/.installed-to-document

# Environments of their own, with the oldest and the newest releases that pyproject.toml allows.
OLDEST := .venv-oldest
NEWEST := .venv-newest
OLDEST_PYTHON ?= python3.11
NEWEST_TORCH ?= torch
CORE := tests/test_engine.py tests/_inputs tests/_checkpoints tests/_model tests/_cache tests/_inference tests/_sklearn

.DEFAULT_GOAL := help
.PHONY: help demo test test-all oldest newest lint types layers docs notebooks format clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort

# torch goes first and pinned: asked for as a range, pip would take the newest build, which
# brings gigabytes of CUDA packages along.
$(TO_RUN): pyproject.toml $(CONSTRAINTS)
	@echo "Making $(VENV): some minutes, without a word from pip"
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$$(grep '^torch==' $(CONSTRAINTS))"
	$(PIP) -c $(CONSTRAINTS) -e ".[families,pandas,parquet,plot,verify]"
	@touch $@

$(TO_DEVELOP): $(TO_RUN)
	$(PIP) -c $(CONSTRAINTS) -e ".[test]"
	@touch $@

$(TO_BROWSE): $(TO_DEVELOP)
	$(PIP) -c $(CONSTRAINTS) -e ".[browser,test]"
	@touch $@

$(TO_DOCUMENT): $(TO_DEVELOP)
	$(PIP) -c $(CONSTRAINTS) -e ".[docs,notebooks,test]"
	@touch $@

demo: $(TO_RUN)  ## embed real peptides, compare layers and baselines on them, draw a map
	$(BIN)/esm2-features demo --output demo

test: $(TO_DEVELOP)  ## run the tests, but for the slowest
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

test-all: $(TO_BROWSE)  ## run all tests; those of the server's page need Chromium
	$(BIN)/python -m pytest $(PARALLEL)

# The minima of pyproject.toml as pins. PyPI's builds of old torch need CUDA libraries even on a CPU.
$(OLDEST)/.installed: pyproject.toml
	$(OLDEST_PYTHON) -m venv $(OLDEST)
	grep -oE '"[A-Za-z0-9-]+>=[0-9.]+"' pyproject.toml | tr -d '"' | sed 's/>=/==/' > $(OLDEST)/minima.txt
	$(OLDEST)/bin/python $(INSTALL) --no-cache-dir -c $(OLDEST)/minima.txt -e ".[test]"
	@touch $@

oldest: $(OLDEST)/.installed  ## run the core tests with the oldest releases that are allowed
	$(OLDEST)/bin/python -m pytest $(PARALLEL) $(CORE)

newest:  ## run the core tests with the newest releases, in a new environment each time
	rm -rf $(NEWEST)
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python $(INSTALL) "$(NEWEST_TORCH)" -e ".[test]"
	$(NEWEST)/bin/python -m pytest $(PARALLEL) $(CORE)

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
notebooks: $(TO_DOCUMENT)  ## execute all notebooks from the beginning, and with other tables
	cache=$$(mktemp -d) && trap 'rm -rf "$$cache"' EXIT && \
	ESM2_FEATURES_CACHE="$$cache" $(BIN)/python -m pytest -o addopts= -p no:cacheprovider \
		--nbmake --nbmake-timeout=300 --durations=0 notebooks/*.ipynb && \
	ESM2_FEATURES_CACHE="$$cache" $(BIN)/python -m pytest $(PARALLEL) -m slow tests/test_notebooks.py

format: $(TO_DEVELOP)  ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and everything generated
	rm -rf $(VENV) $(OLDEST) $(NEWEST) demo docs/_build docs/_generated docs/api docs/examples/*.ipynb .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
