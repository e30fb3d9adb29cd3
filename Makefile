# Two commands: `make run` (a laptop cluster, live) and `make test` (everything). Both set up what they need in .venv.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV   := .venv
comma  := ,
BIN    := $(VENV)/bin
# Files of tests are dealt to one worker more than there are cores, and to four at most: half of what a test with real
# processes takes is waiting. ARGS="-n 0" runs in one process, as a debugger needs it.
WORKERS = $(shell cores=$$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN || echo 2); echo $$((cores < 3 ? cores + 1 : 4)))
SPREAD  = -n $(WORKERS) --dist loadfile --no-loadscope-reorder
PIP    := $(BIN)/python -m pip --disable-pip-version-check --no-input

# Everything but the output of the command itself goes to standard error, so that `make run ARGS=--json` can be piped.
# .venv/unfinished: a pip that was interrupted leaves packages that look installed and are not. Two at once take turns.
define INSTALL
@test -x $(BIN)/python && test ! -e $(VENV)/unfinished || { $(PYTHON_IS_FIT); } >&2
@exec 9>.venv.lock; { ! command -v flock >/dev/null || flock -n 9 || \
  { echo "waiting for another make that sets up $(VENV)"; flock 9; }; } >&2; \
if test -e $@ && test ! -e $(VENV)/unfinished && test -z "$$(find pyproject.toml constraints.txt -newer $@)"; then touch $@; exit 0; fi; \
echo "setting up $(VENV) with $$($(PYTHON) --version 2>&1): some minutes the first time" >&2; \
if test -e $(VENV)/unfinished || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
  $(PYTHON) -m venv --clear $(VENV) >&2 || exit 1; fi; \
touch $(VENV)/unfinished && \
$(PIP) install --constraint constraints.txt --editable '$(1)' >&2 && \
rm $(VENV)/unfinished && touch $@
endef

define PYTHON_IS_FIT
command -v $(PYTHON) >/dev/null || \
  { echo "$(PYTHON) is not there: apt install python3 python3-venv, or make PYTHON=/path/to/python"; exit 1; }; \
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
  { echo "$$(command -v $(PYTHON)) is $$($(PYTHON) --version 2>&1), which is too old: Python 3.11 or newer is needed"; \
    for each in python3.14 python3.13 python3.12 python3.11; do \
      ! command -v $$each >/dev/null || { echo "try: make PYTHON=$$each"; break; }; done; exit 1; }; \
$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
  { echo "$$(command -v $(PYTHON)) cannot make virtual environments: apt install python3-venv"; exit 1; }
endef

.PHONY: help run test unit quick fmt types lint generate docs images release clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(VENV)/run.stamp: pyproject.toml constraints.txt
	$(call INSTALL,.[dev])

$(VENV)/test.stamp: $(VENV)/run.stamp
	$(call INSTALL,.[dev$(comma)test])

$(VENV)/docs.stamp: pyproject.toml constraints.txt
	$(call INSTALL,.[docs])

run: $(VENV)/run.stamp  ## the laptop cluster; ARGS="--once --json" passes flags on
	@exec $(BIN)/localmodel dev $(ARGS)

test: $(VENV)/test.stamp  ## the whole suite: unit, Ray, end to end
	@exec $(BIN)/pytest $(SPREAD) $(ARGS)

unit: $(VENV)/test.stamp  ## what takes a minute: no Ray, no cluster, nothing slow, offline
	@exec $(BIN)/pytest -m 'not ray and not e2e and not slow and not images' $(SPREAD) $(ARGS)

quick: $(VENV)/test.stamp  ## what decides: planning and the mesh, in half a minute
	@exec $(BIN)/pytest -m 'not slow' tests/deciding tests/peering $(ARGS)

fmt: $(VENV)/test.stamp  ## format the code, and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/test.stamp  ## mypy, strict
	$(BIN)/mypy $(ARGS)

lint: $(VENV)/test.stamp  ## style, types, import contracts, generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m coordinator.api.crds --check k8s/crds

generate: $(VENV)/test.stamp  ## k8s/crds from coordinator/api/resources.py, READMEs of charts, the dashboard
	$(BIN)/python -m coordinator.api.crds --write k8s/crds
	$(BIN)/python k8s/charts/document.py --write
	$(BIN)/python k8s/components/monitoring/dashboard.py --write

docs: $(VENV)/docs.stamp  ## site/: the docs as a web site; a dead link ends the build
	@NO_MKDOCS_2_WARNING=1 exec $(BIN)/mkdocs build --strict --quiet $(ARGS)

images:  ## the container images, with buildah, podman or Docker; TARGETS="coordinator-dev" builds others
	@k8s/images/build $(TARGETS)

release: $(VENV)/run.stamp  ## dist/: wheel, images, charts, manifests, bills of materials, checksums
	@PYTHON=$(BIN)/python k8s/release

clean:  ## forget .venv and caches
	rm -rf $(VENV) .venv.lock .dev site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
