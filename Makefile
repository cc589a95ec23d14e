# Two commands for a newcomer, each does all its own set-up: make demo, make test.
# PYTHON is any Python from 3.11 on; the versions are those of constraints.txt.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DEMO_OUTPUT ?= demo

.PHONY: demo test lint clean

demo: $(VENV)/.demo-installed
	$(BIN)/slimdpm demo -o $(DEMO_OUTPUT)

test: $(VENV)/.dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -q

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "slimdpm needs Python 3.11 or later")'
	$(PYTHON) -m venv $(VENV)

# torch first and alone: whatever else needs it then finds this one and brings no other build.
$(VENV)/.torch-installed: constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet -c constraints.txt torch
	touch $@

$(VENV)/.demo-installed: pyproject.toml $(VENV)/.torch-installed
	$(BIN)/pip install --quiet -c constraints.txt -e '.[demo]'
	touch $@

$(VENV)/.dev-installed: pyproject.toml $(VENV)/.torch-installed
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.demo-installed

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
