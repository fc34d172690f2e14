# Commands for developers. `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests with Ray that run after those without, so that the processes of make test end together.
LATE := tests/pipelines/stages/test_retrain.py tests/soak
KILLS ?= 300
DOCUMENTS ?= 50000
SEED ?= 0

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test long unit selftest check format bench soak fuzz cluster gameday cluster-up cluster-down clean

help:  ## list these targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(STAMP)  ## create .venv with the pinned versions

$(STAMP): pyproject.toml infra/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "genmod needs Python 3.11 or newer; choose one with: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint infra/constraints.txt --editable '.[builtin,export,onnx,s3,services,dev]'
	@touch $@

quickstart: setup  ## run the whole pipeline on 5,000 handwritten digits, in minutes
	$(BIN)/genmod run --recipe quickstart

# Three processes; those without Ray leave the cores to Ray's workers when these need them.
test: setup  ## run the tests: unit, contract, Ray and fault tests
	@nice -n 5 $(BIN)/python -m pytest -m 'not ray and not long' tests/genmod >$(VENV)/tests-genmod.log 2>&1 & models=$$!; \
	  { nice -n 5 $(BIN)/python -m pytest -m 'not ray and not long' --ignore=tests/genmod; rest=$$?; \
	    $(BIN)/python -m pytest -m 'ray and not long' $(LATE); late=$$?; \
	    exit $$(( rest > late ? rest : late )); } >$(VENV)/tests-rest.log 2>&1 & others=$$!; \
	  $(BIN)/python -m pytest -m 'ray and not long' $(LATE:%=--ignore=%); code=$$?; \
	  wait $$models || code=1; wait $$others || code=1; \
	  echo "tests of genmod/:"; cat $(VENV)/tests-genmod.log; \
	  echo "other tests without Ray, then those of $(LATE):"; cat $(VENV)/tests-rest.log; \
	  exit $$code

long: setup  ## run the tests that take minutes each: lost nodes, a whole job, people's whole use
	$(BIN)/python -m pytest -m long --ignore=tests/infra

unit: setup  ## run the quick tests, which need no Ray
	$(BIN)/python -m pytest -m 'not ray and not slow'

selftest: setup  ## check the estimators of log p(x) against known densities
	$(BIN)/genmod selftest density

check: setup  ## check format, lint rules, types, insecure code, licences, known advisories and infra/k8s
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/pyright
	$(BIN)/python -m bandit --quiet --recursive --configfile pyproject.toml genmod cluster pipelines
	$(BIN)/python -m tests.licences
	$(BIN)/python -m tests.advisories
	$(BIN)/python -m tests.kubernetes

format: setup  ## format the code and apply automatic lint fixes
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

bench: setup  ## run all benchmarks; results are JSON files in runs/bench
	$(BIN)/python -m tests.benchmarks

soak: setup  ## kill jobs at random times (KILLS=300 SEED=0); results must not change
	nice $(BIN)/python -m tests.soak --kills $(KILLS) --seed $(SEED)

fuzz: setup  ## give mutated documents to every reader (DOCUMENTS=50000 SEED=0, or SECONDS=3600)
	nice $(BIN)/python -m tests.fuzz --seed $(SEED) \
	  $(if $(SECONDS),--seconds $(SECONDS),--documents $(DOCUMENTS))

cluster: setup  ## run all tests of infra/: the stacks as processes and in containers, images, Kubernetes
	$(BIN)/python -m pytest -rs -o faulthandler_timeout=3600 tests/infra tests/kubernetes

gameday: setup  ## make each problem of infra/RUNBOOK.md and run its cure, in a quarter of an hour
	$(BIN)/python -m tests.infra.gameday

cluster-up: setup  ## start the stack of infra/compose.yaml in containers
	@infra/compose/up

cluster-down: setup  ## stop the stack that make cluster-up started
	@infra/compose/down

clean:  ## remove .venv and runs/
	rm -rf $(VENV) runs
