# byhand: make demo, make test. All is installed into .venv. Outside this folder stay pip's cache, the compiled kernels in
# ~/.cache/byhand (or BYHAND_CACHE), and, where make test runs as root and finds no browser, the system's package chromium.

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
# The first Python here that is new enough, unless you name one: make demo PYTHON=python3.12
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3.14 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# The one version that is chosen by hand: what make lock and make drift leave as it is.
TORCH := 2.13.0
PIP_INSTALL := -m pip --disable-pip-version-check install --quiet
LOCKED := $(BIN)/python $(PIP_INSTALL) --constraint constraints.txt
NO_NETWORK := the installation failed: pip's message is above. It needs the network (or PIP_INDEX_URL, or PIP_NO_INDEX and PIP_FIND_LINKS)
ONE_THREAD := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
PYTEST := $(ONE_THREAD) $(BIN)/python -m pytest
# make test PAGE=no leaves out the tests that need a browser.
PAGE ?= yes
ifeq ($(PAGE),no)
WHERE := not page and
FIND_BROWSER := true
else
WHERE :=
FIND_BROWSER := CHROMIUM=$$($(BIN)/python -m tests.chromium) && export CHROMIUM
endif

.PHONY: demo test suite drift lock check campaign mutants bench screenshots format help clean

help:
	@echo "make demo      set up, and see the whole lesson on the model that ships here"
	@echo "make test      set up, and pass every test (PAGE=no: without those that need a browser)"
	@echo "make check     format, lint, types"
	@echo "make campaign  the long runs, whose figures stand in docs/"
	@echo "make mutants   plants small faults and sees whether the tests find them (FAULTS=word chooses)"
	@echo "make bench     this machine's limits, byhand, and the peers that are installed"
	@echo "make screenshots  the pictures of the page in docs/"
	@echo "make lock      write constraints.txt anew: the newest versions of everything but torch"
	@echo "make drift     the tests on the newest of everything but torch, in .venv-drift"
	@echo "make clean     remove .venv and what was built"

demo: $(VENV)/.demo
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh lessons/demo.sh

test: $(VENV)/.test suite

suite:
	@$(FIND_BROWSER) && \
	$(BIN)/python -m tests.ready && \
	$(PYTEST) -m "$(WHERE) not full and not timed" -n auto && \
	$(PYTEST) -m "$(WHERE) not full" -n auto --kernels cpu tests/test_models.py && \
	$(PYTEST) -m "$(WHERE) timed" tests/test_cli.py tests/test_compiled.py tests/test_page_server.py
ifeq ($(PAGE),no)
	@echo "the page's tests were left out (PAGE=no): nothing was seen in a browser"
endif

drift:
	@$(MAKE) --no-print-directory .venv-drift/.newest suite VENV=.venv-drift

lock: $(BIN)/python
	@$(BIN)/python $(PIP_INSTALL) uv
	@echo "torch==$(TORCH)" | $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --no-annotate \
		--custom-compile-command "make lock" --constraint - --extra lock --output-file constraints.txt pyproject.toml

campaign: $(VENV)/.test
	@HYPOTHESIS_PROFILE=explore $(PYTEST) -m full -n auto

mutants: $(VENV)/.test
	@$(ONE_THREAD) $(BIN)/python -m tests.mutants $(FAULTS)

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

# One rule for every environment. Building takes the locked hatchling too, and no newer one from the network.
%/bin/python:
	@test -n "$(PYTHON)" || { echo "byhand needs Python 3.11 or newer with its venv module (on Debian: apt install python3-venv); none was found. Name one with: make demo PYTHON=..." >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than Python 3.11, which byhand needs" >&2; exit 2; }
	@echo "making $* with $$($(PYTHON) --version)"
	@"$(PYTHON)" -m venv $*

$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing byhand and transformers, the judge (the first time takes a minute)"
	@$(LOCKED) editables hatchling && $(LOCKED) --no-build-isolation --editable '.[verify]' || { echo "$(NO_NETWORK)" >&2; exit 2; }
	@touch $@

$(VENV)/.test: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing byhand and what its tests need (the first time takes a minute)"
	@$(LOCKED) editables hatchling && $(LOCKED) --no-build-isolation --editable '.[test]' || { echo "$(NO_NETWORK)" >&2; exit 2; }
	@touch $@

.venv-drift/.newest: .venv-drift/bin/python pyproject.toml FORCE
	@echo "installing the newest of everything but torch"
	@$(BIN)/python $(PIP_INSTALL) --upgrade --upgrade-strategy eager --editable '.[test]' torch==$(TORCH) || { echo "$(NO_NETWORK)" >&2; exit 2; }
	@touch $@

FORCE:

clean:
	rm -rf .venv .venv-drift build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
