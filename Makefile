# Two commands: `make quickstart` shows what LAM does, `make test` proves that it works.
# Both build their own virtual environment. pip's own settings (PIP_INDEX_URL, PIP_FIND_LINKS, pip.conf) are honoured,
# so an index or folder with a CPU build of torch can be chosen there.

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
MODEL ?= LAM-base-v1
FRAMEWORKS := mteb langchain llama-index haystack qdrant lancedb peft setfit keybert bertopic txtai

.PHONY: quickstart test test-all test-frameworks $(FRAMEWORKS:%=test-%) lint format clean

quickstart: $(VENV)/.runtime
	$(BIN)/python examples/quickstart.py $(MODEL)

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

# int8 only here: with torchao installed, every import of transformers takes seconds longer.
test-all: $(VENV)/.dev test-frameworks
	$(PIP) install -q -c constraints.txt -e ".[int8]"
	$(BIN)/python -m pytest

# Each framework again in an environment of its own: its extra must be enough, with the newest versions that fit it.
test-frameworks: $(FRAMEWORKS:%=test-%)

$(FRAMEWORKS:%=test-%): test-%: $(VENV)/frameworks/%/.done
	LAM_REQUIRE=$* $(VENV)/frameworks/$*/bin/python -m pytest tests/test_integration_$(subst -,_,$*).py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(f"LAM needs Python 3.11 or newer, {sys.executable} is {sys.version.split()[0]}; set PYTHON=") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install -q -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install -q -c constraints.txt -e ".[train,evaluate,dev,frameworks,bulk,ray,onnx]"
	touch $@ $(VENV)/.runtime

# Only torch keeps its version, so that a CPU build stays one.
$(VENV)/frameworks/%/.done: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m venv $(@D)
	grep '^torch==' constraints.txt > $(@D)/torch.txt
	$(@D)/bin/python -m pip install -q -c $(@D)/torch.txt -e ".[$*]" pytest
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
