# make train   data, training, evaluation, pictures, on a fresh machine
# make test    linter and all tests
# make bench   speed and scale, on a machine that does nothing else; needs DATA from make train
# All set up .venv first. Python 3.10 or newer is all they ask for: make train PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?= dataset
SCALE ?= 3
OUTPUTS ?= outputs
SHELL := /bin/bash

.PHONY: setup train test lint bench clean

setup: $(VENV)/.ready

# Without a GPU pip should take PyTorch's CPU build where one is at hand: it does by itself when
# an index or folder with `+cpu` builds is configured (PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS).
$(VENV)/.ready: requirements.txt requirements-dev.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "error: $(PYTHON) is older than Python 3.10; make PYTHON=…" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check \
	  -r requirements-dev.txt -c constraints.txt
	@touch $@

train: setup
	@PYTHON=$(BIN)/python bash quickstart.sh "$(DATA)" "$(SCALE)" "$(OUTPUTS)"

test: lint
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@if command -v shellcheck >/dev/null; then shellcheck --external-sources test/*.sh quickstart.sh .ci/run; \
	  else echo "hint: shellcheck is not installed, the shell scripts were not checked" >&2; fi

bench: setup
	$(BIN)/python train.py --data_url "$(DATA)" --recipe fast --outputs-dir build/bench
	$(BIN)/python benchmarks/curves.py fast=build/bench/x3 --output build/bench/curves.png
	$(BIN)/python benchmarks/training_speed.py --data-path "$(DATA)"
	$(BIN)/python benchmarks/accelerator.py
	$(BIN)/python benchmarks/scale.py --data-path "$(DATA)"
	$(BIN)/python benchmarks/preparing_speed.py --images-dir "$(DATA)/images/Train"
	$(BIN)/python benchmarks/enlarging_speed.py

clean:
	rm -rf $(VENV) build .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
