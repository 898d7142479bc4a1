# Two commands do everything on a fresh machine: `make demo` and `make test`. Each makes the environment if it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export OMP_NUM_THREADS ?= 1
XDIST ?= -n 2

.PHONY: demo test test-all lint clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/mi-ablate demo

test: $(READY)
	$(BIN)/python -m pytest $(XDIST) --jaxtyping-packages=mi_ablate,beartype.beartype

# The same suite, then the tests marked `compat` on the oldest and the newest supported TransformerLens.
test-all: test
	bash .ci/compat 2.18 4.3

lint: $(READY)
	$(BIN)/ruff check src tests hooks benchmarks examples
	$(BIN)/ruff format --check src tests hooks benchmarks examples
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .venv-* out
