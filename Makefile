# Every step that a person or CI takes. `make help` lists them.
# Paths are relative on purpose: make cannot handle a checkout whose path holds a space otherwise.

PYTHON ?= python3
VENV ?= .venv
RUN = "$(VENV)/bin/python"
SETUP = "$(PYTHON)" -I include/perennial/stack/environment.py --venv "$(VENV)"

# make run AIRFLOW_PORT=8090 MLFLOW_PORT=5010 HOME_FOLDER=/data/perennial
ifdef AIRFLOW_PORT
export PERENNIAL_AIRFLOW_PORT := $(AIRFLOW_PORT)
endif
ifdef MLFLOW_PORT
export PERENNIAL_MLFLOW_PORT := $(MLFLOW_PORT)
endif
ifdef HOME_FOLDER
export PERENNIAL_HOME := $(HOME_FOLDER)
endif

.DEFAULT_GOAL := help
.PHONY: help python setup setup-tests run up stop status clean distclean check new docs test lint type format lock

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "  PYTHON=python3.12   another interpreter          VENV=folder         another environment folder"
	@echo "  AIRFLOW_PORT=8090   MLFLOW_PORT=5010             HOME_FOLDER=folder  where data and logs go"

python:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: '$(PYTHON)' is missing, does not run, or is older than Python 3.11: $$("$(PYTHON)" -V 2>&1 | head -n 1)" >&2; \
	  echo "Name another interpreter: make run PYTHON=/path/to/python3.12" >&2; exit 1; }

setup: python  ## make the environment from the locked requirements
	@$(SETUP)

setup-tests: python
	@$(SETUP) --tests

run: setup  ## start MLflow and Airflow, run the loop on the sample, show what happened
	@$(RUN) -m perennial.stack run

up: setup  ## start MLflow and Airflow only
	@$(RUN) -m perennial.stack up

stop: python  ## end both servers and every process they started
	@if [ -x "$(VENV)/bin/python" ]; then $(RUN) -m perennial.stack stop; else echo "Nothing was set up, so nothing runs."; fi

status: setup  ## say what runs, and where
	@$(RUN) -m perennial.stack status

clean: python  ## stop, and forget all data, runs and models
	@if [ -x "$(VENV)/bin/python" ]; then $(RUN) -m perennial.stack clean; else rm -rf .perennial; fi

distclean: clean  ## clean, and remove the environment
	rm -rf "$(VENV)" "$(VENV).lock" .mypy_cache .ruff_cache .pytest_cache

check: setup  ## check all models at once: file, line, key, value received, what is allowed
	@$(RUN) -m perennial check

new: setup  ## make a model's folder from a sample file (MODEL=name, ARGS=--help tells more)
	@$(RUN) -m perennial new $(MODEL) $(ARGS)

docs: setup  ## write again what is made from the spec's definition: JSON Schema, table of keys
	@$(RUN) -m perennial docs

test: setup-tests  ## run the tests (ARGS=... goes to pytest)
	@$(RUN) -m pytest $(ARGS)

bench: setup  ## measure speed and memory against the plain libraries (PART=score,train  QUICK=1  ARGS=--help)
	@PYTHONPATH="include:plugins:tests" PART="$(PART)" QUICK="$(QUICK)" $(RUN) -m bench $(ARGS)

lint: setup-tests  ## check style and the direction of the dependencies
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m perennial docs --check

type: setup-tests  ## check types
	@$(RUN) -m mypy

format: setup-tests  ## rewrite the sources in the project's style
	@$(RUN) -m ruff check --fix-only --quiet .
	@$(RUN) -m ruff format .

LOCK = "$(VENV)/bin/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-config \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"

lock: setup  ## lock the dependencies that pyproject.toml declares (ARGS=--upgrade for newer ones)
	@$(LOCK) $(ARGS) pyproject.toml --group sample --group setup -o requirements.txt
	@$(LOCK) $(ARGS) --group test -c requirements.txt -o tests/requirements.txt
