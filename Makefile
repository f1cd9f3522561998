# Everything works on a machine with Python 3.11 to 3.13, pip, make and a package registry.
PYTHON ?= python3
BIN := .venv/bin
# Tests run side by side, so each of them gets one thread; tests of studies mostly wait, hence one more than processors.
SIDE_BY_SIDE := $(shell $(PYTHON) -c "import os; print(min((os.cpu_count() or 1) + 1, 8))")
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(SIDE_BY_SIDE)
PIP := $(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast test-chaos lint format clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

install: .venv/installed  ## make .venv with the pinned dependencies

demo: install  ## full fine-tuning, LoRA and QLoRA side by side, on this machine, in minutes
	$(BIN)/sweeptune fetch smollm2_135m_q4
	$(BIN)/python train.py --multirun experiment=demo

test: .venv/installed-dev  ## all tests, with the embedded model
	$(BIN)/sweeptune fetch smollm2_135m_q4
	$(PYTEST)

test-fast: .venv/installed-dev  ## the tests that take seconds
	$(PYTEST) -m "not slow and not embedded"

test-chaos: .venv/installed-dev  ## kill studies at 100 random moments (make test: 6)
	SWEEPTUNE_CHAOS=100 $(PYTEST) -n 2 tests/study/test_engine.py -k killed_at

lint: .venv/installed-dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed-dev  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv and caches; results stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache

# torch goes first and alone: where a CPU build is configured, pip takes it; asked for together with the rest, pip may
# take the largest build there is.
.venv/installed: constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(PIP) -e '.[dev]'
	touch $@
