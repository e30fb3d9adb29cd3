# Two commands: `make run` (a laptop cluster, live) and `make test` (everything). Both set up what they need in .venv.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help run test unit lint generate clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(VENV)/run.stamp: pyproject.toml constraints.txt
	@echo "setting up $(VENV) (once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(VENV)/test.stamp: $(VENV)/run.stamp
	@$(PIP) install --constraint constraints.txt --editable '.[dev,test]'
	@touch $@

run: $(VENV)/run.stamp  ## the laptop cluster; ARGS="--once --json" passes flags on
	@exec $(BIN)/localmodel dev $(ARGS)

test: $(VENV)/test.stamp  ## the whole suite: unit, Ray, end to end
	@exec $(BIN)/pytest $(ARGS)

unit: $(VENV)/test.stamp  ## the part that runs in seconds, offline
	@exec $(BIN)/pytest -m 'not ray and not e2e' $(ARGS)

lint: $(VENV)/test.stamp  ## style, types, import contracts, generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m coordinator.crds --check k8s/crds

generate: $(VENV)/test.stamp  ## k8s/crds from coordinator/api.py
	$(BIN)/python -m coordinator.crds --write k8s/crds

clean:  ## forget .venv and caches
	rm -rf $(VENV) .dev .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
