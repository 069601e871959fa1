# Two commands: `make quickstart` shows what LAM does, `make test` proves that it works, in the versions of
# constraints.txt; `make test-newest` and `make test-lowest` at both ends of what pyproject.toml allows.
# Each builds its own virtual environment. pip's own settings (PIP_INDEX_URL, PIP_FIND_LINKS, pip.conf) are honoured,
# so an index or folder with a CPU build of torch can be chosen there.

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
MODEL ?= LAM-base-v1
# The variable silences an advertisement for the successor of mkdocs-material.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
FRAMEWORKS := mteb langchain langgraph llama-index haystack qdrant lancedb peft setfit keybert bertopic txtai
ENDS := newest lowest
# What another version of transformers, sentence-transformers or torch could break; TESTS=tests runs everything there.
TESTS ?= tests/test_compatibility.py tests/test_registration.py tests/test_release.py tests/encoding \
	$(addprefix tests/model/test_,$(addsuffix .py,configuration modeling state segments streaming \
	sentence_transformers_module)) tests/checkpoints/test_onnx.py
# Only torch keeps its version there, so that a CPU build stays one; TORCH= takes the newest, or the lowest, of it too.
TORCH ?= $(shell grep '^torch==' constraints.txt)

.PHONY: quickstart test types docs notebooks test-all test-serving test-frameworks $(FRAMEWORKS:%=test-%) $(ENDS:%=test-%) compatibility \
	lint format clean

quickstart: $(VENV)/.runtime
	$(BIN)/python examples/quickstart.py $(MODEL)

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache
	$(MAKE) --no-print-directory -j2 types docs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

types: $(VENV)/.dev
	$(BIN)/mypy

# The pages of docs/ and the API reference, in build/site; needs no network.
docs: $(VENV)/.dev
	$(MKDOCS)

# Executes the notebooks and writes what came out into them.
notebooks: $(VENV)/.dev
	$(PIP) install -q -c constraints.txt -e ".[notebooks]"
	$(BIN)/python examples/notebooks/execute.py --write

# The newest are those of the day when the environment was made: `rm -r .venv/newest` takes newer ones.
$(ENDS:%=test-%): test-%: $(VENV)/%/.done
	OMP_NUM_THREADS=1 $(VENV)/$*/bin/python -m pytest -n 2 -m "not slow" $(TESTS)

# The tables of docs/COMPATIBILITY.md: each environment writes its row.
compatibility: $(VENV)/.dev $(ENDS:%=$(VENV)/%/.done)
	LAM_COMPATIBILITY=lowest $(VENV)/lowest/bin/python -m pytest tests/test_compatibility.py -k users
	LAM_COMPATIBILITY=pinned $(BIN)/python -m pytest tests/test_compatibility.py -k users
	LAM_COMPATIBILITY=newest $(VENV)/newest/bin/python -m pytest tests/test_compatibility.py -k users

# int8 only here: with torchao installed, every import of transformers takes seconds longer.
test-all: $(VENV)/.dev test-frameworks
	$(PIP) install -q -c constraints.txt -e ".[int8,notebooks]"
	$(BIN)/python -m pytest

# Each framework again in an environment of its own: its extra must be enough, with the newest versions that fit it.
test-frameworks: $(FRAMEWORKS:%=test-%)

$(FRAMEWORKS:%=test-%): test-%: $(VENV)/frameworks/%/.done
	LAM_REQUIRE=$* $(VENV)/frameworks/$*/bin/python -m pytest tests/integrations/test_integration_$(subst -,_,$*)*.py

# The server with the clients of others, a browser where Chromium is installed, and npm's client where LAM_NODE_MODULES
# names a folder that has it.
test-serving: $(VENV)/serving/.done
	OMP_NUM_THREADS=1 $(VENV)/serving/bin/python -m pytest tests/serving

$(VENV)/serving/.done: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m venv --upgrade-deps $(@D)
	grep '^torch==' constraints.txt > $(@D)/torch.txt
	$(@D)/bin/python -m pip install -q --no-compile -c $(@D)/torch.txt -e ".[serve,serve-tests]"
	touch $@

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# --upgrade-deps: a new pip finds versions that fit together in a third of the time of that of Python 3.11.
$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(f"LAM needs Python 3.11 or newer, {sys.executable} is {sys.version.split()[0]}; set PYTHON=") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv --upgrade-deps $(VENV)

$(VENV)/.runtime: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install -q -c constraints.txt -e .
	touch $@

# Without --no-compile pip compiles every module of every package here; those that are used are compiled when they are.
$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install -q --no-compile -c constraints.txt -e ".[train,dev,docs,frameworks,ray,edge,serve,memory,memory-tests]"
	touch $@ $(VENV)/.runtime

# Only torch keeps its version, so that a CPU build stays one.
$(VENV)/frameworks/%/.done: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m venv --upgrade-deps $(@D)
	grep '^torch==' constraints.txt > $(@D)/torch.txt
	$(@D)/bin/python -m pip install -q --no-compile -c $(@D)/torch.txt -e ".[$*]" pytest
	touch $@

$(ENDS:%=$(VENV)/%/.done): $(VENV)/%/.done: $(VENV)/bin/python pyproject.toml constraints.txt tests/version_bounds.py
	rm -rf $(@D)
	$(BIN)/python -m venv --upgrade-deps $(@D)
	echo '$(TORCH)' > $(@D)/versions.txt
	$(BIN)/python tests/version_bounds.py $* >> $(@D)/versions.txt
	$(@D)/bin/python -m pip install -q --no-compile -c $(@D)/versions.txt -e ".[train,bulk,test]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
