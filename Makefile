# One command each; `make` alone lists them. Every target that needs .venv makes it first.

VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test faults check format openapi bench lock clean

help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make .venv from requirements.lock, install missing programs (PYTHON=… chooses the interpreter)
	@sh deploy/setup.sh

demo: setup ## start a server and a pretend fleet (ONCE=1: run it through once and end)
	PYTHONPATH=agents/sim $(BIN)/python -m iotjobs_sim.demo $(if $(ONCE),--once)

test: setup ## run all tests, in random order (ARGS="-k lanes -x", WORKERS=4)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

faults: setup ## break things as often as docs/explanation/guarantees.md says (an hour; SEED=number repeats)
	$(if $(SEED),IOTJOBS_TEST_SEED=$(SEED)) $(BIN)/python -m pytest --full -s -o timeout=3000 \
	  tests/faults tests/contract/test_lanes.py tests/contract/test_races.py \
	  tests/contract/test_status_model.py tests/contract/test_events.py \
	  tests/integration/test_rest_control.py $(ARGS)

check: setup ## formatting, lint, types, import rules, spelling, dependencies
	@failed=; \
	for step in "ruff format --check ." "ruff check ." mypy "lint-imports --no-logo" codespell "deptry ."; do \
	  echo "$$step"; $(BIN)/$$step || failed="$$failed, $$step"; \
	done; \
	[ -z "$$failed" ] || { echo "failed: $${failed#, }"; exit 1; }

format: setup ## format the code and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

openapi: setup ## write docs/reference/openapi.json and the table of rest.md from the code
	$(BIN)/python -m tests.architecture.openapi

bench: setup ## measure; each benchmark prints a table and a JSON line (ARGS=name: only that one)
	PATH="$(CURDIR)/$(BIN):$$PATH" sh benchmarks/run.sh $(ARGS)

lock: setup ## pin the newest fitting versions with hashes (needs uv: .venv/bin/pip install uv)
	@[ -x $(BIN)/uv ] || { echo "uv is not in $(VENV); run: $(BIN)/pip install uv"; exit 1; }
	$(BIN)/uv pip compile pyproject.toml --all-extras --upgrade --python-version 3.11 --generate-hashes \
	  --no-header --no-emit-index-url --no-emit-find-links --quiet --output-file requirements.lock

clean: ## remove .venv, caches and build output; data/ stays
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .benchmark-env
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
