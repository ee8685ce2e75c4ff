# Every command that a person or CI runs. `make help` lists them.
# Paths are relative on purpose: make cannot handle a checkout whose path holds a space otherwise.

PYTHON ?= python3
VENV ?= .venv
DOCKER ?= docker
export DOCKER
RUN = "$(VENV)/bin/python"
SETUP = "$(PYTHON)" -I tools/setup_environment.py --venv "$(VENV)"
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"$$/\1/p' include/perennial/__init__.py)

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
.PHONY: help python setup setup-tests run start stop status clean distclean check new docs test bench bench-loop lint type format lock \
	test-containers test-gpu images up sample down sbom security audit scorecard

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "  PYTHON=python3.12   another interpreter          VENV=folder         another environment folder"
	@echo "  AIRFLOW_PORT=8090   MLFLOW_PORT=5010             HOME_FOLDER=folder  where data and logs go"

python:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: '$(PYTHON)' is missing, does not run, or is older than Python 3.11: $$("$(PYTHON)" -V 2>&1 | head -n 1)" >&2; \
	  echo "Name another interpreter: make run PYTHON=/path/to/python3.12" >&2; exit 1; }

setup: python  ## create the environment from the locked requirements
	@$(SETUP)

setup-tests: python
	@$(SETUP) --tests

run: setup  ## start MLflow and Airflow, run the loop on the sample, print a summary
	@$(RUN) -m perennial.local_stack run

start: setup  ## start MLflow and Airflow, or what of them is missing
	@$(RUN) -m perennial.local_stack start

stop: python  ## stop the servers and every process they started
	@if [ -x "$(VENV)/bin/python" ]; then $(RUN) -m perennial.local_stack stop; else echo "Nothing is set up, and nothing runs."; fi

status: setup  ## show the state of each component, and what to do
	@$(RUN) -m perennial.local_stack status

clean: python  ## stop, and delete all data, runs and models
	@if [ -x "$(VENV)/bin/python" ]; then $(RUN) -m perennial.local_stack clean; else rm -rf .perennial; fi

distclean: clean  ## clean, and delete the environment
	rm -rf "$(VENV)" "$(VENV).lock" docker/.env .mypy_cache .ruff_cache .pytest_cache

check: setup  ## check all models: file, line, key, received value, allowed values
	@$(RUN) -m perennial check

new: setup  ## create a model's folder from a sample file (MODEL=name; ARGS=--help for options)
	@$(RUN) -m perennial new $(MODEL) $(ARGS)

docs: setup  ## regenerate the JSON Schemas and the tables of keys
	@$(RUN) -m perennial docs

test: setup-tests  ## run the tests (ARGS=... goes to pytest)
	@$(RUN) -m pytest --numprocesses auto --dist loadscope --no-loadscope-reorder $(ARGS)

# images that run in pods; the others run in the engine alone
POD_IMAGES = trainer airflow mlflow

test-containers: setup-tests  ## build all images; test them, compose, and pods in the cluster of KUBECONFIG (LOAD="kind load docker-image" hands the cluster an image)
	@[ -n "$(KUBECONFIG)" ] || { echo "error: KUBECONFIG is not set: it names the cluster that pods are tested on" >&2; exit 1; }
	@docker/build
	@[ -z "$(LOAD)" ] || for image in $(POD_IMAGES); do $(LOAD) "perennial/$$image:$(VERSION)" || exit 1; done
	@$(RUN) -m pytest -m kubernetes $(ARGS)

test-gpu: setup  ## train and score on this machine's NVIDIA card, compare with the CPU (ARGS=--help)
	@$(RUN) tools/gpu_check.py $(ARGS)

bench: setup  ## measure speed and memory of the steps against direct calls of the libraries (PART=score,train  QUICK=1  SCALE=rows  ARGS=--help)
	@PYTHONPATH="include:plugins:tests:." PART="$(PART)" QUICK="$(QUICK)" SCALE="$(SCALE)" $(RUN) -m bench $(ARGS)

bench-loop: setup  ## measure the value of monitoring and retraining on streams with known changes and real ones (QUICK=1  ARGS="--seeds 3")
	@PYTHONPATH="include:plugins:tests:." $(RUN) -m bench.loop $(if $(QUICK),--quick) $(ARGS)

lint: setup-tests  ## check style, imports between packages, declared dependencies, generated pages
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@"$(VENV)/bin/lint-imports" --no-logo --cache-dir .ruff_cache/import-linter
	@$(RUN) -m deptry --no-ansi bench dags docker include plugins tools
	@$(RUN) -m perennial docs --check

type: setup-tests  ## check types
	@$(RUN) -m mypy

format: setup-tests  ## format the sources
	@$(RUN) -m ruff check --fix-only --quiet .
	@$(RUN) -m ruff format .

LOCK = "$(VENV)/bin/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-config \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"

COMPOSE = TAG="$(or $(TAG),$(VERSION))" $(DOCKER) compose --file docker/compose.yaml --env-file docker/.env

images:  ## build the container images (IMAGES="trainer airflow"  REGISTRY=name  TAG=tag  PIP_CONF=file  CA_FILE=file  DOCKER=client)
	@docker/build $(IMAGES)

up: python  ## start everything in containers: Postgres, S3, MLflow, Airflow (make images comes first)
	@"$(PYTHON)" docker/passwords.py
	@$(COMPOSE) up --detach --wait --quiet-pull $(ARGS)
	@echo "Airflow http://localhost:$${AIRFLOW_PORT:-8080} (admin; AIRFLOW_PASSWORD in docker/.env)  MLflow http://localhost:$${MLFLOW_PORT:-5000} (admin; MLFLOW_ADMIN_PASSWORD)"

sample: ENV_FILE ?= docker/.env
sample: setup  ## land the sample in the bucket of the containers (make up comes first)
	@[ -f "$(ENV_FILE)" ] || { echo "error: there is no $(ENV_FILE), which make up writes: run make up first" >&2; exit 1; }
	@set -a && . "$$(realpath "$(ENV_FILE)")" && set +a && unset AWS_PROFILE AWS_SESSION_TOKEN && \
	  AWS_ENDPOINT_URL="$${S3_ENDPOINT:-http://localhost:$${S3_PORT:-9000}}" NO_PROXY="localhost,$$NO_PROXY" \
	  AWS_ACCESS_KEY_ID="$$S3_ACCESS_KEY" AWS_SECRET_ACCESS_KEY="$$S3_SECRET_KEY" \
	  AWS_REGION="$${S3_REGION:-us-east-1}" AWS_DEFAULT_REGION="$${S3_REGION:-us-east-1}" \
	  PERENNIAL_LANDING=s3://perennial-landing $(RUN) -m perennial.local_stack.sample

down:  ## stop the containers, and delete their data
	@$(DOCKER) compose --project-name perennial down --volumes --remove-orphans

sbom: setup-tests  ## write a CycloneDX list of each image's packages into .perennial/sbom
	@$(RUN) docker/sbom.py $(IMAGES)

scorecard: setup-tests  ## run the tests that earn the ML test score, and write docs/scorecard.md (ARGS=--help)
	@$(RUN) tools/scorecard $(ARGS)

security: setup-tests  ## look for weaknesses in sources and workflows, secrets in the history, licences
	@$(RUN) tools/security

audit: setup-tests  ## check the locked packages for known vulnerabilities; needs the network
	@$(RUN) tools/security/vulnerabilities.py

lock: setup  ## lock the dependencies that pyproject.toml declares (ARGS=--upgrade for newer ones)
	@$(LOCK) $(ARGS) pyproject.toml --group sample --group setup -o requirements.txt
	@$(LOCK) $(ARGS) --group test -c requirements.txt --override tests/overrides.txt -o tests/requirements.txt
	@$(LOCK) -c requirements.txt --group image-trainer -o docker/trainer/requirements.txt
	@$(LOCK) -c requirements.txt --group image-trainer-gpu -o docker/trainer/requirements-gpu.txt
	@$(LOCK) -c requirements.txt --group image-mlflow -o docker/mlflow/requirements.txt
	@$(LOCK) -c requirements.txt -c tests/requirements.txt --group image-s3 -o docker/s3/requirements.txt
	@$(LOCK) -c requirements.txt pyproject.toml --override docker/airflow/overrides.txt --group image-airflow \
	  -o docker/airflow/requirements.txt
