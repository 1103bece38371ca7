# Everything happens in .venv, which requirements/install.py makes and keeps; no target needs it activated.
PYTHON ?= python3
# What this machine runs vLLM on. `make setup EXTRA=gpu` prepares an image for a GPU where there is none.
EXTRA ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup dev demo test check format lock clean

help:  ## what there is to make
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1|\2/p' Makefile | column -t -s '|'

setup:  ## .venv with pinned versions, for this machine's CPU or GPU
	@$(PYTHON) requirements/install.py $(EXTRA)

dev:
	@$(PYTHON) requirements/install.py $(EXTRA) dev

demo: setup  ## two rounds on the newsroom, with tiny models: no GPU, no downloads
	@$(BIN)/rondo run configs/demo.yaml

test: dev  ## the tests; ARGS=tests/unit for the fast ones, ARGS='-m slow' for the slow ones
	@$(BIN)/python -m pytest $(ARGS)

check: dev  ## format, lint and types, changing nothing
	@$(BIN)/ruff format --check -q && $(BIN)/ruff check -q && $(BIN)/mypy

format: dev  ## format and repair what ruff can
	@$(BIN)/ruff format && $(BIN)/ruff check --fix

lock: dev  ## pin anew after a change in pyproject.toml; ARGS=--upgrade for the newest of everything
	@$(BIN)/python requirements/lock.py $(ARGS)

clean:  ## remove .venv and every cache, keep runs/
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
