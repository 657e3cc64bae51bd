# make demo    trains a small network on handwritten digits, and times its loss beside other libraries
# make test    style, types and tests: what continuous integration runs. In parts, because each kernel that is compiled
#              stays in its process, 3 MB of it, and because those of the first parts serve the last one from the cache.
#              The tests of tests/cuda run once in Numba's simulator of a GPU, which a process has from its start.
# make test-gpu  the same on a GPU, with what only a GPU shows; says so and stops where there is none
# make bench-gpu  times losses on a GPU beside PyTorch (and Liger-Kernel, if installed in .venv); writes bench-gpu.json
# make docs    the documentation, docs/_build/html/index.html; warnings are errors
# make bench   measures the figures of README.md and docs/benchmarks.md and writes them there; run nothing beside it
#
# Each makes .venv where there is none and installs what it needs there; a stamp in .venv remembers that until
# pyproject.toml changes. Another interpreter: make PYTHON=python3.13. Options: make demo ARGS="--epochs 10".

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/pytest --numprocesses auto --maxprocesses 4

.PHONY: demo test test-gpu bench-gpu docs bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed-demo
	$(BIN)/fastloss demo $(ARGS)

test: $(VENV)/.installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
ifeq ($(ARGS),)
	$(PYTEST) tests/engine
	$(PYTEST) tests/test_invariants.py
	$(PYTEST) --ignore tests/engine --ignore tests/test_invariants.py
	NUMBA_ENABLE_CUDASIM=1 $(PYTEST) tests/cuda/test_device.py
else
	$(PYTEST) $(ARGS)
endif

test-gpu: $(VENV)/.installed-test $(VENV)/.installed-cuda
	$(BIN)/pytest tests/cuda -rs $(ARGS)

bench-gpu: $(VENV)/.installed-bench $(VENV)/.installed-cuda
	$(BIN)/fastloss bench --device cuda --json bench-gpu.json $(ARGS)

docs: $(VENV)/.installed-docs
	$(BIN)/sphinx-build -M html docs docs/_build -W --keep-going $(ARGS)

bench: $(VENV)/.installed-bench $(VENV)/.installed-peers
	$(BIN)/fastloss bench --write-docs --properties $(ARGS)

# Everything that can be made again, but for .venv, which takes minutes.
clean:
	rm -rf build dist demo-output docs/_build docs/losses .asv .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -path './$(VENV)' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# One rule for every extra of pyproject.toml.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/pip
	$(BIN)/pip install --disable-pip-version-check --editable '.[$*]'
	touch $@

# pip, not python: without Debian's python3-venv an environment is left behind that has a python and no pip.
$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)
