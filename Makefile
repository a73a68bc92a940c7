# `make demo` makes an object from a sentence, `make test` runs every check, and `make help` lists the rest.
# Each sets up what it needs: a virtual environment in .venv, once, and again when requirements or constraints change.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# A Python of at least 3.11 that starts and can make a virtual environment; `make demo PYTHON=/path/to/python` picks another.
PROBE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for name in python3.12 python3.13 python3.11 python3 python; do \
	if "$$name" -c '$(PROBE)' >/dev/null 2>&1; then command -v "$$name"; break; fi; done)
# Where the environment is; another Python beside the first: make types PYTHON=python3.13 VENV=.venv-3.13
VENV ?= .venv
PROMPT ?= a yellow duck
SEED ?= 0
# The newest object, or the one that `make demo` makes.
SPLATS ?= $(or $(firstword $(shell ls -t outputs/*/object.ply 2>/dev/null)),outputs/a-yellow-duck-0/object.ply)
GPU ?= h100
WORKERS ?= 2
SIZE ?= small
# A file's tests stay with one worker, which compiles once what they share. Files are taken in the order of
# tests/conftest.py, the longest first.
PYTEST := $(VENV)/bin/python -m pytest -n $(WORKERS) --dist=loadfile --no-loadscope-reorder

# Installations take the exact versions that were tested, whatever appeared since. Python 3.11 has a list of its own,
# 3.12 and newer ones share the other. `make update` renews them.
CONSTRAINTS := constraints-3.11.txt constraints-3.12.txt
PIP_INSTALL = $(@D)/bin/python -m pip install --quiet --disable-pip-version-check --constraint \
	constraints-$$($(@D)/bin/python -c 'import sys; print("3.11" if sys.version_info < (3, 12) else "3.12")').txt

# These compile whole iterations and trainings; the rest is the fast half.
SLOW_TESTS := tests/guidance tests/runs tests/scenes tests/toybox tests/training

# These have environments of their own.
OTHER_TESTS := tests/torch tests/gpu_plan tests/splat_transform

# Both legs of the bundled model's training; the second one begins with what the first one installed.
LEG := --views_per_kind=128 --pictures=32768 --vae_steps=3500 --unet_batch=48 --save_every=200 --install

.PHONY: help demo train mesh figures test check-format lint types pytest test-fast test-formats test-torch plan-gpu test-gpu-plan format update clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.runtime  ## Make a 3D object from a sentence: make demo PROMPT="a blue robot" SEED=1
	@$(VENV)/bin/python experiments/generate.py --prompt="$(PROMPT)" --seed=$(SEED)

train: $(VENV)/.runtime  ## Retrain the bundled model and put it into the package (several hours)
	$(VENV)/bin/python experiments/train_toybox.py --out=runs/toybox $(LEG) --unet_steps=6400 --unet_learning_rate=2e-3
	mkdir -p runs/toybox-2
	test -e runs/toybox-2/vae || cp -r runs/toybox/vae runs/toybox/views.npz runs/toybox-2
	$(VENV)/bin/python experiments/train_toybox.py --out=runs/toybox-2 $(LEG) --unet_steps=9000 --unet_learning_rate=1.5e-3 --seed=1 --start_from=toybox

mesh: $(VENV)/.mesh  ## Make a mesh of the newest object, or of others: make mesh SPLATS=outputs/a-yellow-duck-0/object.ply
	@$(VENV)/bin/python experiments/export_mesh.py "$(SPLATS)"

figures: $(VENV)/.figures  ## Make a first look at the paper's tables and figures; SIZE=full for all of them
	@$(VENV)/bin/python experiments/figures/page.py --size="$(SIZE)"

test: check-format lint types pytest  ## Run everything a change must pass: formatting, lint, types, tests

check-format: $(VENV)/.dev
	$(VENV)/bin/ruff format --check .

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .

types: $(VENV)/.dev
	$(VENV)/bin/mypy

pytest: $(VENV)/.dev
	$(PYTEST) $(addprefix --ignore=,$(OTHER_TESTS))

test-fast: $(VENV)/.dev  ## Run the fast half of the tests, in some minutes
	$(PYTEST) $(addprefix --ignore=,$(SLOW_TESTS) $(OTHER_TESTS))

test-formats: $(VENV)/.dev .node/.splat-transform  ## Compare splat files with another program's (needs Node.js 20)
	$(VENV)/bin/python -m pytest tests/splat_transform tests/formats/test_usd.py

test-torch: .venv-torch/.torch  ## Compare the networks with diffusers and transformers in PyTorch
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 .venv-torch/bin/python -m pytest tests/torch

plan-gpu: .venv-gpu-plan/.gpu-plan  ## Plan what a run takes on a GPU, without the GPU: make plan-gpu GPU=rtx4090
	@.venv-gpu-plan/bin/python experiments/plan_gpu.py --gpu="$(GPU)"

test-gpu-plan: .venv-gpu-plan/.gpu-plan  ## Test compiling for five GPUs, without them (3 GB of packages)
	.venv-gpu-plan/bin/python -m pytest tests/gpu_plan

format: $(VENV)/.dev  ## Rewrite the sources in the project's style
	$(VENV)/bin/ruff check --fix-only --quiet .
	$(VENV)/bin/ruff format .

update:  ## Renew constraints-*.txt with the newest versions that the requirements allow
	@.ci/update-constraints

clean:  ## Remove virtual environments and tool caches, but not outputs/
	rm -rf .venv .venv-* .node .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

%/bin/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer that can make virtual environments was found." \
		"Install one (on Debian or Ubuntu: apt install python3-venv) or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" -c '$(PROBE)' || { echo "$(PYTHON) is older than Python 3.11 or cannot make virtual environments." >&2; exit 1; }
	@echo "Setting up $* with $(PYTHON)"
	@"$(PYTHON)" -m venv $*

$(VENV)/.runtime: requirements.txt pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	@echo "Installing the requirements (once; one to two minutes)"
	@$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.mesh: $(VENV)/.runtime requirements-mesh.txt
	@$(PIP_INSTALL) -r requirements-mesh.txt
	@touch $@

$(VENV)/.figures: $(VENV)/.runtime requirements-figures.txt
	@$(PIP_INSTALL) -r requirements-figures.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.mesh requirements-dev.txt
	@$(PIP_INSTALL) -r requirements-dev.txt
	@touch $@

.node/.splat-transform: tests/splat_transform/package.json | $(VENV)/.dev
	@command -v npm >/dev/null || { echo "npm was not found. Install Node.js 20 or newer." >&2; exit 1; }
	@echo "Installing splat-transform (once; 200 MB)"
	@mkdir -p .node
	@cp $< .node/
	@npm install --prefix .node --no-audit --no-fund --silent
	@touch $@

TORCH_NEEDS := pyproject.toml $(addprefix requirements,.txt -mesh.txt -dev.txt -torch.txt) $(CONSTRAINTS) constraints-torch.txt
.venv-torch/.torch: $(TORCH_NEEDS) | .venv-torch/bin/python
	@echo "Installing the PyTorch reference (once; some minutes)"
	@$(PIP_INSTALL) --constraint constraints-torch.txt -r requirements-torch.txt
	@$(PIP_INSTALL) --constraint constraints-torch.txt -e .[dev]
	@touch $@

GPU_PLAN_NEEDS := pyproject.toml $(addprefix requirements,.txt -mesh.txt -dev.txt -gpu-plan.txt) $(CONSTRAINTS)
.venv-gpu-plan/.gpu-plan: $(GPU_PLAN_NEEDS) | .venv-gpu-plan/bin/python
	@echo "Installing JAX with the compiler for NVIDIA cards (once; some minutes, 3 GB)"
	@$(PIP_INSTALL) -r requirements-gpu-plan.txt -e .[dev]
	@touch $@
