PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: help setup train studies report archive bench test test-all lint format clean
.DEFAULT_GOAL := help

help: ## show what there is to make
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(READY) ## make .venv with the pinned dependencies, once

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make setup PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

train: $(READY) ## fine-tune the offline default: no download, no account, no GPU
	$(RUN) -m src.train +experiment=last_block

STUDIES := $(filter-out experiments/book_table.yaml, $(wildcard experiments/*.yaml))
studies: $(READY) ## run every study of the mini GPT that has not finished, two runs at a time: hours; data in data/
	$(RUN) -m src.sweep $(STUDIES) workers=2

report: $(READY) ## tables and figures of all studies, from the run folders and those in experiments/runs.tar.xz
	$(RUN) -m src.report format=md,tex,csv,figures,html

archive: ## add the finished run folders, without checkpoints, to experiments/runs.tar.xz
	all=$$(mktemp -d) && tar -xJf experiments/runs.tar.xz -C $$all \
		&& find runs -maxdepth 2 -name result.json -printf '%h\n' | while read run; do [ -f $$run/predictions.csv ] || continue; mkdir -p $$all/$$run && cp -p $$run/config.yaml $$run/result.json $$run/predictions.csv $$all/$$run; done \
		&& XZ_OPT=-9e tar -cJf experiments/runs.tar.xz --sort=name --owner=0 --group=0 --numeric-owner -C $$all runs && rm -r $$all

bench: $(READY) ## speed beside transformers, prediction, growth: on an idle machine, about an hour
	$(RUN) -m benchmarks.job
	$(RUN) -m benchmarks.predict
	$(RUN) -m benchmarks.growth

test: $(READY) ## all tests but the slow ones
	$(RUN) -m pytest -n auto --dist worksteal -m 'not slow'

test-all: $(READY) ## all tests
	$(RUN) -m pytest -n auto --dist worksteal

lint: $(READY) ## ruff, mypy, and the floors of src/
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports --no-cache

format: $(READY) ## let ruff put the code in order
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean: ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
