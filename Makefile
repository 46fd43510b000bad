# One target per habit. Nothing but Python (3.11 or newer) and make is assumed: every target makes .venv
# itself where it needs it, and says what it does meanwhile.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
VENV := .venv
RUN := $(VENV)/bin
STAMP := $(VENV)/.ready
CHECK = $(RUN)/python tools/check.py

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: venv
venv: $(STAMP) ## the development environment, as the lock file has it

$(STAMP): pyproject.toml uv.lock tools/bootstrap.py
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer on PATH: install one, or call make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) tools/bootstrap.py $(VENV)
	@touch $@

.PHONY: demo demo-web demo-clean
demo: $(STAMP) ## real management commands in real containers, and the table of what came back
	@$(RUN)/python demo/run_demo.py
demo-web: $(STAMP) ## the admin with the demo's jobs, on http://127.0.0.1:8000/admin/
	@$(RUN)/python demo/run_demo.py --web
demo-clean: $(STAMP) ## remove whatever the demo made: containers, images, engine, database
	@$(RUN)/python demo/run_demo.py --clean

.PHONY: test test-unit test-db test-mysql test-contract test-engine test-acceptance test-faults test-browser
test: $(STAMP) ## everything, against real engines and databases; stages: make test-unit and so on
	@$(CHECK)
test-unit: $(STAMP)
	@$(CHECK) unit
test-db: $(STAMP)
	@$(CHECK) db-sqlite db-postgres db-mariadb
test-mysql: $(STAMP)
	@$(CHECK) db-mysql
test-contract: $(STAMP)
	@$(CHECK) contract
test-engine: $(STAMP)
	@$(CHECK) engine
test-acceptance: $(STAMP)
	@$(CHECK) acceptance
test-faults: $(STAMP) ## every fault in its long form, on SQLite and PostgreSQL (about an hour; CI runs a short one)
	@CM_FAULTS=full $(CHECK) faults faults-postgres
test-browser: $(STAMP)
	@$(CHECK) browser

.PHONY: lint types format matrix bench docs
lint: $(STAMP) ## ruff and the import directions
	@$(CHECK) lint imports
types: $(STAMP) ## mypy, strict
	@$(CHECK) types
format: $(STAMP) ## let ruff lay out the code
	@$(RUN)/ruff format .
	@$(RUN)/ruff check --fix .
matrix: $(STAMP) ## every supported pair of Python and Django for which an interpreter is here
	@$(RUN)/python tools/matrix.py
bench: $(STAMP) ## the raw engine's speed and ours, in one run
	@$(RUN)/python -m tests.benchmarks.run
docs: $(STAMP) ## the documentation's links and statements
	@$(RUN)/python tools/links.py
	@$(CHECK) docs

.PHONY: clean stop
stop: ## switch off engines and databases that tests left running
	@$(PYTHON) tools/check.py --stop
clean: stop ## and remove what make made (but not the demo's: demo-clean)
	@rm -rf $(VENV) .state/matrix .state/bootstrap .state/mysql .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
