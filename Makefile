# `make test` on a fresh machine needs Python 3.11 or later and make: everything else lands in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
BENCH := .venv-bench
DIST := .venv-dist
SHARED := ../shared
BENCH_INPUTS = $(SHARED)/checkpoints/full_sft_512.pth $(SHARED)/tokenizer/minimind2 \
	$(SHARED)/data/dpo_en_zh_400.jsonl
# One thread each: the thread count changes bits, and tests compare bits. Some tests mostly wait, so
# that two cores bear four processes.
TEST_JOBS ?= 4

.PHONY: setup demo dist docs test pytest test-cpu quick storm fuzz bench bench-gpu bench-scaling lint format clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dpo needs Python 3.11 or later")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/dpo demo

# Wheel and sdist, checked. The wheel is installed into an empty environment, which trains the demo in
# an empty folder.
dist: $(DIST)/ready
	rm -rf dist $(DIST)/try
	$(DIST)/bin/python -m build --outdir dist .
	$(DIST)/bin/python -m twine check --strict dist/*
	$(PYTHON) -m venv $(DIST)/try
	$(DIST)/try/bin/python -m pip install --quiet -c constraints.txt dist/*.whl
	mkdir $(DIST)/try/folder
	cd $(DIST)/try/folder && ../bin/dpo --help > help.txt && ../bin/dpo --version --verbose && ../bin/dpo demo
	rm -rf $(DIST)/try

# The documentation site in English, and below it in Chinese, as files: site/index.html. A broken link
# or a page that the navigation lacks is an error.
docs: export NO_MKDOCS_2_WARNING = 1
docs: $(READY)
	$(BIN)/python -m mkdocs build -f website/mkdocs.yml
	$(BIN)/python -m mkdocs build -f website/mkdocs.zh-CN.yml

$(DIST)/ready:
	$(PYTHON) -m venv $(DIST)
	$(DIST)/bin/python -m pip install --quiet build twine
	touch $@

# The linters take one core for half a minute, so the tests begin beside them.
test: $(READY)
	$(MAKE) --no-print-directory -j2 lint pytest

pytest: $(READY)
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist worksteal

# The tests that compare bits, under each instruction set of torch's CPU kernels: default, avx2, avx512.
test-cpu: $(READY)
	$(BIN)/python -m tests.support.capabilities -n $(TEST_JOBS) --dist worksteal

# The tests of what changed since main: tests/support/quick.py selects them.
quick: lint
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist worksteal $$($(BIN)/python -m tests.support.quick)

# A hundred random SIGKILLs of one run, which must end like an undisturbed one (`make test` does 25).
# Then two ranks: 50 stops of one rank, 20 kills of the launcher.
storm: $(READY)
	$(BIN)/python -m tests.faults.storm --kills 100 --orphans 50 --starts 100
	$(BIN)/python -m tests.faults.rank_storm --stops 50 --kills 20

# Mutated profiles, rows, tables, weights, configurations, templates, tokenizers, runs, caches and
# command lines, for FUZZ_SECONDS; failures are kept in tests/fuzz/corpus, which `make test` checks.
FUZZ_SECONDS ?= 3600
fuzz: $(READY)
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)

# Speed of the plain loop, TRL and dpo; takes half an hour and needs an idle machine.
bench: $(READY) $(BENCH)/ready
	$(BIN)/python benchmarks/speed.py $(BENCH_INPUTS) --each --trl $(BENCH)/bin/python --json benchmarks/speed.json

# The same on a GPU: a call takes ten minutes at most; a second call adds the missing parts. Measures
# TRL, too, after `make .venv-bench/ready`. See docs/machines.md.
bench-gpu: $(READY)
	$(BIN)/python benchmarks/gpu.py $(if $(wildcard $(BENCH)/ready),--trl $(BENCH)/bin/python)

# Speed by sequence length and batch size; uses a GPU, if there is one, in bfloat16.
bench-scaling: $(READY) $(BENCH)/ready
	$(BIN)/python benchmarks/scaling.py $(BENCH_INPUTS) --json benchmarks/scaling.json
	$(BENCH)/bin/python benchmarks/plot.py benchmarks/scaling.json docs/pictures/scaling.svg

$(BENCH)/ready: constraints.txt
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet -c constraints.txt torch transformers trl matplotlib 'lm-eval[hf]'
	touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(DIST) site .mypy_cache .pytest_cache .ruff_cache
