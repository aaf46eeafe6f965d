# `make test` on a fresh machine needs Python 3.11 or later and make: everything else lands in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
# Two test processes with one thread each: the thread count changes bits, and tests compare bits.
TEST_JOBS ?= 2

.PHONY: setup demo test storm lint format clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dpo needs Python 3.11 or later")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/dpo train profiles/demo.toml
	$(BIN)/dpo export demo
	@echo 'Look at it again: $(BIN)/dpo show demo'
	@echo 'Next: your own model. In a MiniMind checkout: $(CURDIR)/$(BIN)/dpo init my-run'

test: lint
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist worksteal

# A hundred random SIGKILLs of one run; it must end as one left in peace. `make test` does 25.
storm: $(READY)
	$(BIN)/python -m tests.faults.storm --kills 100

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
