# make demo   the built-in model, dropped, swapped and looked into: files, figures, table, report
# make test   ruff, mypy, pytest
# make check  the same without the slow tests
# make fuzz   hostile command lines, files, models, texts and answers, and kills, all that are known
# make ndif-test   everything on a real NDIF server on loopback, which it sets up (minutes, 6 GB)
# make gpu    the tests of a GPU and its benchmark, on this machine's CUDA device (minutes); docs/gpu.md
# All but the last set up .venv first when it is missing or pyproject.toml or constraints.txt changed.

PYTHON ?= python3
BIN := .venv/bin

# Processes that share the device in tests, and seconds after which the benchmark begins nothing more.
GPU_WORKERS ?= 4
GPU_SECONDS ?= 240
GPU_OUT ?= outputs/gpu.nc

.PHONY: demo check lint test pytest pytest-quick fuzz ndif-test gpu clean

demo: .venv/ready
	$(BIN)/stages demo

# mypy has one core, and tests begin with imports: beside each other they take less time.
test: .venv/ready
	$(MAKE) --no-print-directory --jobs 2 lint pytest

check: .venv/ready
	$(MAKE) --no-print-directory --jobs 2 lint pytest-quick

pytest: .venv/ready
	$(BIN)/pytest -n auto --dist worksteal

pytest-quick: .venv/ready
	$(BIN)/pytest -n auto --dist worksteal -m "not hub and not gpu and not slow"

lint: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The limit on memory (in KiB) is the machine's protection from what a bomb would take.
fuzz: .venv/ready
	ulimit -v 16000000 && STAGES_FUZZ=1 $(BIN)/pytest -n auto --dist worksteal --durations 10 \
	    tests/fuzz tests/test_kills.py tests/test_training_kept.py tests/test_export.py tests/test_export_places.py \
	    tests/test_families.py tests/gpu tests/test_products.py tests/test_compiled_blocks.py

ndif-test: .venv/ready
	$(BIN)/pytest tests/ndif/suite.py tests/ndif/half_precision.py tests/ndif/low_limits.py -s -rs --durations 20

# A card may be free for minutes: it is measured even if a test fails.
gpu:
	python=$$($(PYTHON) benchmarks/gpu_environment.py) || exit 1; \
	$$python -c "import sys, torch; sys.exit(not torch.cuda.is_available() and 'there is no CUDA device')" \
	    || exit 1; \
	$$python -m pytest tests/gpu -m gpu -n $(GPU_WORKERS) --dist worksteal --durations 5; failed=$$?; \
	$$python benchmarks/gpu.py --budget $(GPU_SECONDS) --out $(GPU_OUT) && exit $$failed

# torch comes first and pinned: left to itself, pip would fetch the newest with its GPU libraries.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	    --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .gpu .ndif build *.egg-info
