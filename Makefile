# byhand: make demo, make test. Everything lives in .venv; nothing outside this folder is touched.

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
# The first Python here that is new enough, unless you name one: make demo PYTHON=python3.12
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3.14 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
ONE_THREAD := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.PHONY: demo test check campaign bench screenshots format help clean

help:
	@echo "make demo      set up, and see the whole lesson on the model that ships here"
	@echo "make test      set up, and pass every test"
	@echo "make check     format, lint, types"
	@echo "make campaign  the long runs, whose figures stand in docs/"
	@echo "make bench     this machine's limits, byhand, and the peers that are installed"
	@echo "make screenshots  the pictures of the page in docs/"
	@echo "make clean     remove .venv and what was built"

demo: $(VENV)/.demo
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh lessons/demo.sh

test: $(VENV)/.test
	@$(ONE_THREAD) $(BIN)/python -m pytest -m "not full and not timed" -n auto
	@$(ONE_THREAD) $(BIN)/python -m pytest -m "not full" -n auto --kernels cpu tests/test_models.py
	@$(ONE_THREAD) $(BIN)/python -m pytest -m timed tests/test_cli.py tests/test_compiled.py tests/test_page_server.py

campaign: $(VENV)/.test
	@HYPOTHESIS_PROFILE=explore $(ONE_THREAD) $(BIN)/python -m pytest -m full -n auto

check: $(VENV)/.test
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

bench: $(VENV)/.demo
	@$(BIN)/byhand bench $(BENCH)

screenshots: $(VENV)/.test
	@$(BIN)/python docs/screenshots.py

format: $(VENV)/.test
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "byhand needs Python 3.11 or newer with its venv module (on Debian: apt install python3-venv); none was found. Name one with: make demo PYTHON=..." >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than Python 3.11, which byhand needs" >&2; exit 2; }
	@echo "making .venv with $$($(PYTHON) --version)"
	@"$(PYTHON)" -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing byhand and transformers, the judge (the first time takes a minute)"
	@$(PIP) --editable '.[verify]' || { echo "the installation failed: pip's message is above. It needs the network (or PIP_INDEX_URL, or PIP_NO_INDEX and PIP_FIND_LINKS)" >&2; exit 2; }
	@touch $@

$(VENV)/.test: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing byhand and what its tests need (the first time takes a minute)"
	@$(PIP) --editable '.[test]' || { echo "the installation failed: pip's message is above. It needs the network (or PIP_INDEX_URL, or PIP_NO_INDEX and PIP_FIND_LINKS)" >&2; exit 2; }
	@touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
