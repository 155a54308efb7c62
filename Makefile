# make train | test | test-slow | lint | setup        PYTHON=python3.12 chooses another interpreter, with an environment of its own
PYTHON ?= python3
VENV ?= $(if $(filter python3,$(PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Two processes; the tests of a file stay together, as they share what was set up for them.
PARALLEL := --numprocesses=2 --dist=loadscope --no-loadscope-reorder

.PHONY: setup train test test-slow lint

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt covidjax/ops/native/*.[ch]pp
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make $(MAKECMDGOALS) PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[cpu]' \
		|| echo "oneDNN could not be installed: native operations are left out"
	$(BIN)/python -m covidjax.ops --optional
	@touch $@

train: setup
	$(BIN)/python launch/train.py --config=configs/quickstart.py --workdir=runs/quickstart

# Nearly all of their time is compilation, a third of it LLVM's optimisations; the slow tests run with these.
test: setup
	XLA_FLAGS="--xla_backend_optimization_level=0 $(XLA_FLAGS)" $(BIN)/python -m pytest -m "not slow" $(PARALLEL)

test-slow: setup
	$(BIN)/python -m pytest -m slow $(PARALLEL)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror covidjax/ops/native/*.[ch]pp
