# Two commands for a newcomer, each does all its own set-up: make demo, make test. A third builds the docs: make docs.
# PYTHON is any Python from 3.11 on; the versions are those of constraints.txt.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Byte code is made where a module is first imported: pip would make it of all of them, and most are never imported.
INSTALL = $(BIN)/pip install --quiet --no-compile -c constraints.txt
# Images of containers often forbid byte code: then each process compiles torch and diffusers anew, ten seconds of it.
unexport PYTHONDONTWRITEBYTECODE
DEMO_OUTPUT ?= demo

.PHONY: demo test docs clean

demo: $(VENV)/.demo-installed
	$(BIN)/slimdpm demo -o $(DEMO_OUTPUT)

test: $(VENV)/.dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -q

docs: $(VENV)/.docs-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "slimdpm needs Python 3.11 or later")'
	$(PYTHON) -m venv $(VENV)

# torch first and alone: whatever else needs it then finds this one and brings no other build.
$(VENV)/.torch-installed: constraints.txt | $(BIN)/python
	$(INSTALL) torch
	touch $@

$(VENV)/.demo-installed: pyproject.toml $(VENV)/.torch-installed
	$(INSTALL) -e '.[demo]'
	touch $@

$(VENV)/.dev-installed: pyproject.toml $(VENV)/.torch-installed
	$(INSTALL) -e '.[dev]'
	@$(BIN)/python -c 'from slimdpm.export.web.runtime import fetched; fetched()' 2>/dev/null || \
		echo 'npm did not bring ONNX Runtime Web: the tests of pages will not run'
	touch $@ $(VENV)/.demo-installed

# The reference is read off the sources: nothing of slimdpm is imported, so torch is not needed.
$(VENV)/.docs-installed: pyproject.toml constraints.txt mkdocs.yml | $(BIN)/python
	$(INSTALL) $$($(BIN)/python -c 'import tomllib; \
		print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])')
	touch $@

clean:
	rm -rf $(VENV) site build dist .pytest_cache .mypy_cache .ruff_cache
