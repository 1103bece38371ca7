# All targets use .venv, which requirements/install.py creates and updates. You do not need to activate it.
PYTHON ?= python3
# The hardware for vLLM: gpu if nvidia-smi works, else cpu. `make setup EXTRA=gpu` forces gpu, e.g. in an image.
EXTRA ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
BIN := .venv/bin

.DEFAULT_GOAL := help
# The articles of `make demo-real`, and where its model is kept.
ARTICLES ?= hf:abisee/cnn_dailymail/3.0.0:validation
SMOLLM2 := runs/models/SmolLM2-135M-Instruct

.PHONY: help setup benchmark qlora dev demo demo-real docs test check format lock clean

help:  ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1|\2/p' Makefile | column -t -s '|'

setup:  ## install pinned versions into .venv, for this machine's CPU or GPU
	@$(PYTHON) requirements/install.py $(EXTRA)

benchmark:  ## setup, with the packages of `rondo benchmark`
	@$(PYTHON) requirements/install.py $(EXTRA) benchmark

qlora:  ## setup, with bitsandbytes for adapters on a base in 4 bits
	@$(PYTHON) requirements/install.py $(EXTRA) qlora

dev:
	@$(PYTHON) requirements/install.py $(EXTRA) dev

demo: setup  ## run three rounds on the newsroom with tiny models; needs no GPU and no model downloads
	@$(BIN)/rondo run configs/demo.yaml

demo-real: setup  ## run two rounds of a real model on real articles (ARTICLES=my.jsonl); needs no GPU; an hour
	@$(BIN)/python requirements/get_smollm2.py $(SMOLLM2)
	@$(BIN)/rondo run configs/smollm2_cpu.yaml policy.model=$(SMOLLM2) judge.model=$(SMOLLM2) \
		articles.path=$(ARTICLES) $(if $(filter hf:abisee/%,$(ARTICLES)),articles.text_column=article) $(ARGS)

docs:  ## build the documentation as a site in build/docs, with the reference of settings, commands and Python
	@$(PYTHON) requirements/install.py $(EXTRA) docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict --config-file docs/site/mkdocs.yml
	@echo "The site is in build/docs: open index.html, or for the search run $(BIN)/python -m http.server -d build/docs"

test: dev  ## run the tests; ARGS=tests/unit for the fast ones, ARGS='-m slow' for the slow ones
	@$(BIN)/python -m pytest $(ARGS)

check: dev  ## check format, lint and types without changing files
	@$(BIN)/ruff format --check -q && $(BIN)/ruff check -q && $(BIN)/mypy

format: dev  ## format the code and apply ruff's fixes
	@$(BIN)/ruff format && $(BIN)/ruff check --fix

lock: dev  ## update the pins after a change in pyproject.toml; ARGS=--upgrade upgrades everything
	@$(BIN)/python requirements/lock.py $(ARGS)

clean:  ## remove .venv and all caches; keep runs/
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
