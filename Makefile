# make train   data, training, evaluation, pictures, on a fresh machine
# make check   linter and the tests that start no process and need no images, between commits
# make test    linter and all tests
# make test-versions   tests with older and newer releases of everything; writes docs/versions.md
# make mutation   faults put in one by one, and how many the tests notice; writes docs/testing.md
# make constraints   constraints.txt anew, from the newest releases
# make bench   speed and scale, on a machine that does nothing else; needs DATA from make train
# All set up .venv first. Python 3.10 or newer is all they ask for: make train PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?= dataset
SCALE ?= 3
OUTPUTS ?= outputs
LEGS ?= 0 1 2 3 4 5 6 7
MODULES ?=
MUTANTS ?= 20
SHELL := /bin/bash
TORCH := $(shell grep -o '^torch==[0-9.]*' requirements-npu.txt)
# A process for each core, each of one thread, as more threads than cores slow each other down.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=logical --dist=worksteal
CUDA := cuda-bindings cuda-toolkit nvidia-cudnn-cu13 nvidia-cusparselt-cu13 nvidia-nccl-cu13 \
  nvidia-nvshmem-cu13 triton

.PHONY: setup constraints train check test test-versions mutation lint bench clean

setup: $(VENV)/.ready

# PyTorch apart, without hashes, as the build differs by machine. Without a GPU pip should take the CPU
# build where one is at hand: it does by itself when an index or folder with `+cpu` builds is
# configured (PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS). Last, this folder on the path of .venv.
$(VENV)/.ready: pyproject.toml requirements.txt requirements-dev.txt requirements-npu.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "error: $(PYTHON) is older than Python 3.10; make PYTHON=…" >&2; exit 1; }
	@echo "setting up $(VENV): a minute or more, in which pip is silent"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# The newest releases that requirements-dev.txt allows, for every Python from 3.10 and every system,
# with their hashes. PyTorch's pure Python needs are in, PyTorch and its CUDA libraries are not.
constraints: setup
	$(BIN)/pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'
	$(BIN)/uv pip compile requirements-dev.txt --constraint <(echo $(TORCH)) \
	  --excludes <(printf '%s\n' $(CUDA)) --no-emit-package torch \
	  --universal --python-version 3.10 --generate-hashes --upgrade --no-annotate \
	  --custom-compile-command 'make constraints' --quiet --output-file constraints.txt

train: setup
	@PYTHON=$(BIN)/python bash quickstart.sh "$(DATA)" "$(SCALE)" "$(OUTPUTS)"

check: lint
	$(PYTEST) test/unit -m 'not slow and not command and not images'

test: lint
	$(PYTEST)

# One environment after another, up to 3 GB at a time below build/versions/, removed again. LEGS="0 2"
# runs some of them, by the numbers that test/versions/run.py --help lists.
test-versions: setup
	$(BIN)/pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'
	$(BIN)/python test/versions/run.py $(LEGS)

# Files of the product to put faults into, all without MODULES, and MUTANTS at most into each.
mutation: setup
	$(BIN)/pip install --quiet --disable-pip-version-check 'mutmut>=3.8,<4'
	OMP_NUM_THREADS=1 $(BIN)/python test/mutation/run.py $(MODULES) --mutants=$(MUTANTS)

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	@if command -v shellcheck >/dev/null || [ "$$CI" = true ]; then shellcheck --external-sources test/*.sh quickstart.sh .ci/run; \
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
	rm -rf $(VENV) build mutants .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
