PYTHON ?= python3
BIN := .venv/bin

# One thread per process: small models run faster so, and timings hold with neighbours.
export OMP_NUM_THREADS = 1

.PHONY: demo test lint types bench clean

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable ".[test]"
	touch $@

demo: .venv/installed
	$(BIN)/python examples/demo.py

test: lint types
	$(BIN)/python -m pytest -n 2 --dist loadfile --timeout=900

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: .venv/installed
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check ".[bench]"
	set -e; for name in overhead ddp rotation savings peers transfer; do $(BIN)/python benchmarks/$$name.py; done

clean:
	rm -rf .venv build dist demo_output .mypy_cache .pytest_cache .ruff_cache
