# The two commands: `make demo` makes an object from a sentence, `make test` runs every check.
# Each sets up what it needs: a virtual environment in .venv, once, and again when the requirements change.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# A Python of at least 3.11 that starts and can make a virtual environment; `make demo PYTHON=/path/to/python` picks another.
PROBE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for name in python3.12 python3.13 python3.11 python3 python; do \
	if "$$name" -c '$(PROBE)' >/dev/null 2>&1; then command -v "$$name"; break; fi; done)
PROMPT ?= a red mushroom
SEED ?= 0
WORKERS ?= 2

PIP_INSTALL := -m pip install --quiet --disable-pip-version-check

.PHONY: help demo test check-format lint types pytest test-torch format clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: .venv/.runtime  ## Make a 3D object from a sentence: make demo PROMPT="a blue robot"
	@.venv/bin/python experiments/generate.py --prompt="$(PROMPT)" --seed=$(SEED)

test: check-format lint types pytest  ## Formatting, lint, types and tests

check-format: .venv/.dev
	.venv/bin/ruff format --check .

lint: .venv/.dev
	.venv/bin/ruff check .

types: .venv/.dev
	.venv/bin/mypy

pytest: .venv/.dev
	.venv/bin/python -m pytest -n $(WORKERS) --ignore=tests/torch

test-torch: .venv-torch/.torch  ## Compare the networks with diffusers and transformers in PyTorch
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 .venv-torch/bin/python -m pytest tests/torch

format: .venv/.dev  ## Rewrite the sources in the project's style
	.venv/bin/ruff check --fix-only --quiet .
	.venv/bin/ruff format .

clean:  ## Remove the virtual environments and the tools' caches; outputs/ stays
	rm -rf .venv .venv-torch .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

%/bin/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer that can make virtual environments was found." \
		"Install one (on Debian or Ubuntu: apt install python3-venv) or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" -c '$(PROBE)' || { echo "$(PYTHON) is older than Python 3.11 or cannot make virtual environments." >&2; exit 1; }
	@echo "Setting up $* with $(PYTHON)"
	@"$(PYTHON)" -m venv $*

.venv/.runtime: requirements.txt pyproject.toml | .venv/bin/python
	@echo "Installing the requirements (once; one to two minutes)"
	@.venv/bin/python $(PIP_INSTALL) -e .
	@touch $@

.venv/.dev: .venv/.runtime requirements-dev.txt
	@.venv/bin/python $(PIP_INSTALL) -r requirements-dev.txt
	@touch $@

.venv-torch/.torch: requirements.txt requirements-dev.txt requirements-torch.txt pyproject.toml | .venv-torch/bin/python
	@echo "Installing the PyTorch reference (once; some minutes)"
	@.venv-torch/bin/python $(PIP_INSTALL) -r requirements-torch.txt
	@.venv-torch/bin/python $(PIP_INSTALL) -e .[dev]
	@touch $@
