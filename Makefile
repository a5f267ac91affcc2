PYTHON ?= python3
BIN := .venv/bin

# One thread per process: small models run faster so, and timings hold with neighbours.
export OMP_NUM_THREADS = 1
# Tests start some 20 processes: with compiled files each is there in a third of the time.
unexport PYTHONDONTWRITEBYTECODE

PIP := -m pip install --quiet --disable-pip-version-check --no-compile

.PHONY: docs demo test test-oldest lint types wheel coverage mutants bench clean

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP) ".[test]"
	touch $@

demo: wheel
	$(BIN)/python examples/demo.py

# What is tested is the built wheel: `pytest` alone does not put this folder on the path.
test: lint types wheel
	$(BIN)/pytest -n 2 --dist loadfile --timeout=900 --pyargs lightning_freeze tests

wheel: .venv/installed
	rm -rf dist
	$(BIN)/python -m build --wheel --no-isolation --outdir dist . >/dev/null
	$(BIN)/python $(PIP) --no-deps --force-reinstall dist/*.whl

# The oldest supported pair, in an environment of its own.
OLDEST := torch==2.6.0 torchvision==0.21.0 lightning==2.5.0

.venv-oldest/installed: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python $(PIP) $(OLDEST) ".[test]"
	touch $@

test-oldest: wheel .venv-oldest/installed
	.venv-oldest/bin/python $(PIP) --no-deps --force-reinstall dist/*.whl
	.venv-oldest/bin/pytest -n 2 --dist loadfile --timeout=900 --pyargs lightning_freeze tests

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: .venv/installed
	$(BIN)/mypy --num-workers 2

# Branch coverage of the package, with the processes that the tests start.
coverage: wheel
	$(BIN)/coverage erase
	COVERAGE_PROCESS_START=$(CURDIR)/pyproject.toml $(BIN)/coverage run -m pytest -n 2 --dist loadfile --timeout=900 \
		--pyargs lightning_freeze tests
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# Seeded mutants of the package against the tests beside them; hours for all of them.
mutants: .venv/installed
	$(BIN)/python tests/support/mutants.py

bench: .venv/installed
	$(BIN)/python $(PIP) ".[bench]"
	set -e; for name in overhead ddp rotation savings peers transfer; do $(BIN)/python benchmarks/$$name.py; done

docs: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check ".[docs]"
	$(BIN)/mkdocs build --strict --config-file examples/mkdocs.yml

clean:
	rm -rf .venv .venv-oldest build dist demo_output .coverage* .mypy_cache .pytest_cache .ruff_cache
