# `make demo` and `make test` are all that a fresh machine needs: Python >= 3.11 with pip.
#
#   PYTHON=python3.12 make test       another interpreter
#   TORCH_PIP="--index-url URL"       another build of torch (CPU only, another CUDA)
#   WORKERS=8 make test               as many tests at a time (2 by default)

PYTHON ?= python3
TORCH_PIP ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
TORCH := $(shell grep '^torch==' constraints.txt)
# One thread each, so that the workers do not fight for the cores.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)
# pytest's exit status 5 says that nothing was collected: no reason to fail for an empty group.
NONE_IS_FINE := || [ $$? -eq 5 ]

.DELETE_ON_ERROR:
.PHONY: help setup demo test quick slow exhaustive lint format validate profiles clean

help:
	@echo "make demo       set up, then do the main job"
	@echo "make test       set up, then lint, types and all tests"
	@echo "make quick      the quick tests alone      make lint    ruff and mypy alone"
	@echo "make format     let ruff rewrite           make clean   remove the environment"
	@echo "make exhaustive the long matrices whole"
	@echo "make validate   write the validation page  make profiles  trace the bundled models again"

setup: $(STAMP)

# The stamp is newer than what it was made from, so a second call costs nothing.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "rigsize needs Python 3.11 or later: PYTHON=python3.12 make ..." >&2; exit 1; }
	@test -x $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1 || \
	  $(PYTHON) -m venv --clear $(VENV) || \
	  { rm -rf $(VENV); echo "python3 -m venv could not make an environment with pip." \
	    "On Debian or Ubuntu: apt-get install python3-venv; elsewhere install Python's" \
	    "ensurepip module, or name another interpreter with PYTHON=..." >&2; exit 1; }
	@echo "setting up $(VENV): torch first, some minutes on a slow line"
	@# Alone and first: a later dependency may otherwise choose a build with gigabytes of CUDA.
	$(PIP) "$(TORCH)" -c constraints.txt $(TORCH_PIP)
	$(PIP) -e '.[dev]' -c constraints.txt
	@touch $@

demo: setup
	@$(BIN)/python -m rigsize.demo

test: lint quick slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quick: setup
	$(PYTEST) -m "not slow and not exhaustive and not gpu" $(NONE_IS_FINE)

slow: setup
	$(PYTEST) -m "slow and not exhaustive and not gpu" $(NONE_IS_FINE)

# The whole of every matrix, of which `make test` runs a part: half an hour on two cores.
exhaustive: setup
	$(PYTEST) -m "exhaustive and not gpu" $(NONE_IS_FINE)

validate: setup
	$(BIN)/python -m rigsize.cli validate

profiles: setup
	$(BIN)/python validation/build_profiles.py

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis dist
