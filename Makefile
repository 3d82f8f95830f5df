# What one needs: Python >= 3.11, make and a package registry. `make` alone lists the targets.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.imgsynth-setup
STAMP_NOTEBOOKS := $(VENV)/.imgsynth-setup-notebooks

# The Python that makes the environment: the first on the path that is new enough.
# Another one: make setup PYTHON=/opt/python3.13/bin/python3
PYTHON ?= $(shell for p in python3 python python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; \
	done)

# Installs "$(1)": by uv if there is one, else by a uv of our own, else by pip.
define install
	@if command -v uv >/dev/null 2>&1; then uv=uv; \
	elif [ -x $(BIN)/uv ]; then uv=$(BIN)/uv; \
	elif $(call pip) install --quiet uv >/dev/null 2>&1 && [ -x $(BIN)/uv ]; then uv=$(BIN)/uv; \
	else uv=; fi; \
	if [ -n "$$uv" ] && $$uv pip install --python $(BIN)/python -c constraints.txt -e "$(1)"; then :; \
	else \
		echo "uv could not install; trying pip, which takes longer."; \
		$(call pip) install -c constraints.txt -e "$(1)"; \
	fi
endef
pip = { $(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip --default-pip >/dev/null; } \
	&& $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint type bench notebooks clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP)  ## Make the environment in .venv (once; again when its requirements change)

$(BIN)/python:
	@py='$(PYTHON)'; \
	if [ -z "$$py" ]; then \
		echo "imgsynth needs Python 3.11 or newer, and none is on the path." >&2; \
		echo "Install one, or name it: make setup PYTHON=/path/to/python3" >&2; exit 1; \
	elif ! $$py -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
		echo "imgsynth needs Python 3.11 or newer; $$py is $$($$py --version 2>&1)." >&2; \
		echo "Name another one: make setup PYTHON=/path/to/python3" >&2; exit 1; \
	fi; \
	if command -v uv >/dev/null 2>&1; then uv venv --quiet --allow-existing --python "$$py" $(VENV); \
	else $$py -m venv $(VENV); fi

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(call install,.[dev])
	@touch $@

$(STAMP_NOTEBOOKS): $(STAMP)
	$(call install,.[dev$(,)notebooks])
	@touch $@

, := ,

demo: setup  ## Train a GAN on real handwritten digits and judge what it learnt (minutes, no GPU)
	@if [ -d runs/demo ]; then $(BIN)/imgsynth resume runs/demo; \
	else $(BIN)/imgsynth fit -c gan/hinge_digits --name demo; fi
	@$(BIN)/python experiments/judge_digits.py runs/demo

test: setup  ## Run the quick tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

test-all: setup  ## Run every test that this machine can run
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup -m "not gpu"
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
		$(BIN)/python -m pytest -m gpu; else echo "No GPU: its tests were left out."; fi

lint: setup  ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: setup  ## Check types
	$(BIN)/mypy

bench: setup  ## Measure the training step (by hand, bfloat16, two ranks), the data path and scores
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/overhead.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/precision.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/ranks.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/data.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/evaluation.py

notebooks: $(STAMP_NOTEBOOKS)  ## Run the notebooks from their .py files
	$(BIN)/python notebooks/run.py

clean:  ## Remove caches and builds; runs and the environment stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .coverage .coverage.* htmlcov
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
