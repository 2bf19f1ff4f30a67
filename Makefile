# A bare machine needs Python 3.11 or 3.12, make, gcc and git. Everything else goes into .venv.
#
#   make demo       install, build the demo engines, compare speculation on and off, stop
#   make serve      the same server, up until Ctrl-C (SERVE_ARGS="--http-port 8080")
#   make test       what CI runs (installs torch: gigabytes, unless a CPU build of it is in .venv already)
#   make test-slow  what takes longer than five minutes
#   make lint       ruff and mypy --strict
#   make bench      ratios of this machine, as JSON in BENCH_JSON
#   make clean      remove the environment and everything built
SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

# Run and not only looked up: a version manager may have a name on PATH that leads to no Python.
PYTHON      ?= $(shell for python in python3.11 python3.12 python3; do $$python -c $(SUPPORTED) 2>/dev/null && echo $$python && break; done)
SUPPORTED    = 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))'
VENV        ?= .venv
BIN         := $(VENV)/bin
PYTHON_TAG   = $(shell $(PYTHON) -c 'import sys; print("py%d%d" % sys.version_info[:2])')
LOCK         = deploy/locks/$(PYTHON_TAG)
PIP          = $(BIN)/python -m pip --disable-pip-version-check
SERVE_ARGS  ?=
TEST_ARGS   ?=
BENCH_JSON  ?= bench.json

.PHONY: help demo serve test test-slow lint bench install install-dev lock lock-check clean

help:
	@sed -n 's/^#   //p' Makefile

demo: install
	$(BIN)/drafthouse build --demo
	$(BIN)/drafthouse demo

serve: install
	$(BIN)/drafthouse build --demo
	exec $(BIN)/drafthouse serve --gateway-port 9000 $(SERVE_ARGS)

# The tests share the serving environment: what they start is then the very installation a user has.
# That serving works without torch is a test of its own (tests/unit/test_launcher_imports.py).
test: install-dev
	$(BIN)/python -m pytest $(TEST_ARGS)

test-slow: install-dev
	$(BIN)/python -m pytest -m "slow and not gpu" --timeout 3600 $(TEST_ARGS)

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/drafthouse build --demo
	$(BIN)/drafthouse bench decode --json $(BENCH_JSON)

install: $(VENV)/.installed-serve
install-dev: $(VENV)/.installed-dev

$(BIN)/python:
	@test -n "$(PYTHON)" && $(PYTHON) -c $(SUPPORTED) \
	  || { echo "error: found no Python 3.11 or 3.12; install one, or run: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null \
	  || { echo "error: $(PYTHON) cannot make an environment (it has no ensurepip); on Debian and Ubuntu:" \
	       "sudo apt-get install python$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv" >&2; exit 1; }
	@echo "==> creating $(VENV) with $(PYTHON)"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-serve: $(BIN)/python pyproject.toml deploy/locks/py311-serve.txt deploy/locks/py312-serve.txt
	@echo "==> installing the pinned serving dependencies (first time: about 250 MB to download)"
	$(PIP) install --requirement $(LOCK)-serve.txt
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-serve deploy/locks/py311-dev.txt deploy/locks/py312-dev.txt
	@echo "==> installing the pinned test and training dependencies; torch is among them: the default build brings NVIDIA's"
	@echo "    libraries and is gigabytes to download, PyTorch's CPU build of the same version (0.8 GB on disk) is kept if it is in $(VENV)"
	$(PIP) install --requirement $(LOCK)-dev.txt
	@touch $@

# Rewrites the lock files from pyproject.toml, keeping every pin that still fits (delete a line to let it move). torch's CUDA libraries are left out: torch's own metadata pins
# them, and a machine with a CPU build of torch must not be made to install them.
LOCK_ARGS = --quiet --no-header --no-annotate --python-platform x86_64-manylinux_2_35
lock:
	@test -x .venv-lock/bin/uv || { $(PYTHON) -m venv .venv-lock && .venv-lock/bin/pip install --quiet uv==0.13.8; }
	@for version in 3.11 3.12; do \
	  tag=py$${version/./}; all=$$(mktemp); cp deploy/locks/$$tag-dev.txt $$all || true; echo "==> resolving for Python $$version"; \
	  .venv-lock/bin/uv pip compile pyproject.toml --extra cpu-server --extra editable --extra plot --extra gateway --extra load --extra train --extra dev \
	    $(LOCK_ARGS) --python-version $$version --output-file $$all; \
	  { echo "# Written by \`make lock\` from pyproject.toml: cpu-server, editable, plot, gateway, load, train, dev."; \
	    sed 's/+cpu$$//' $$all | grep --extended-regexp --invert-match '^(nvidia-c|nvidia-n|cuda-|triton==)'; } > deploy/locks/$$tag-dev.txt; \
	  { echo "# Written by \`make lock\` from pyproject.toml: cpu-server, editable, plot, gateway."; \
	    .venv-lock/bin/uv pip compile pyproject.toml --extra cpu-server --extra editable --extra plot --extra gateway $(LOCK_ARGS) \
	      --python-version $$version --constraint deploy/locks/$$tag-dev.txt; } > deploy/locks/$$tag-serve.txt; \
	  rm $$all; \
	done

# Does the package index still hold what the lock files name, for both Pythons? Downloads metadata, installs nothing.
lock-check: $(BIN)/python
	@for version in 3.11 3.12; do \
	  echo "==> resolving deploy/locks/py$${version/./}-serve.txt for Python $$version"; \
	  $(PIP) install --quiet --dry-run --target $(VENV)/.lock-check --python-version $$version --only-binary :all: \
	    --platform manylinux_2_35_x86_64 --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
	    --platform manylinux_2_12_x86_64 --platform manylinux2010_x86_64 --platform manylinux_2_34_x86_64 --platform manylinux_2_31_x86_64 \
	    --platform manylinux_2_27_x86_64 --platform manylinux_2_26_x86_64 --platform manylinux_2_24_x86_64 --platform manylinux_2_5_x86_64 \
	    --platform manylinux1_x86_64 --requirement deploy/locks/py$${version/./}-serve.txt; \
	done

clean:
	rm -rf $(VENV) .venv-lock .pytest_cache .mypy_cache .ruff_cache dist $(BENCH_JSON)
	git clean -fdXq model_repository
