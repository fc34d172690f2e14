# The commands of genmod. `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
KILLS ?= 200
SEED ?= 0

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test unit selftest check format bench soak clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(STAMP)  ## build .venv from the pinned constraints

$(STAMP): pyproject.toml infra/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "genmod needs Python 3.11 or newer; say which with: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint infra/constraints.txt --editable '.[builtin,s3,dev]'
	@touch $@

quickstart: setup  ## shard, train, sample, score and evaluate on 5,000 real digits
	$(BIN)/genmod run --recipe quickstart

test: setup  ## every test: units, laws, Ray, faults
	$(BIN)/python -m pytest

unit: setup  ## the quick tests, which need no Ray
	$(BIN)/python -m pytest -m 'not ray and not slow'

selftest: setup  ## every estimator of log p(x) against known truths
	$(BIN)/genmod selftest density

check: setup  ## format, lint and types
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/pyright

format: setup  ## format and mend what can be mended
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

bench: setup  ## every benchmark; JSON under runs/bench
	$(BIN)/python -m tests.benchmarks

soak: setup  ## kill jobs at random times (KILLS=200 SEED=0), compare with undisturbed ones
	nice $(BIN)/python -m tests.soak --kills $(KILLS) --seed $(SEED)

clean:  ## remove the environment and the runs
	rm -rf $(VENV) runs
