# Two commands: `make book` builds the book, `make test` runs the tests. Each sets up what it needs.

PYTHON    ?= python3
PROFILE   ?= book
JOBS      ?=
BENCH     ?=
KILLS     ?= 20
TEST_JOBS ?= 2

VENV  := .venv
RUN   := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help book test lint smoke bench torture site-check clean

help:
	@echo "make book         build the book into _build/html   (PROFILE=smoke|book|laptop|paper, JOBS=notebooks at once)"
	@echo "make test         run the tests                      (TEST_JOBS=processes)"
	@echo "make lint         check style and format"
	@echo "make smoke        run every notebook in seconds      (into _build/smoke)"
	@echo "make bench        measure speed side by side, print ratios (BENCH='--quick' tries it out)"
	@echo "make torture      kill, fill and damage running grids  (KILLS=20)"
	@echo "make site-check   open every page in Chromium, save screenshots to _build/screenshots"
	@echo "make clean        remove what was built, but not the environment in $(VENV)"
	@echo "PYTHON=python3.12 make ...   choose the interpreter of a new environment, 3.11 or newer"

# The environment is made once, and again when one of these files changes.
$(STAMP): requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or newer is needed, but '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo missing)." >&2; \
	  echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): several GB with PyTorch, minutes, once"
	@$(RUN) -m pip install -q --disable-pip-version-check -r requirements.txt -c constraints.txt
	@$(RUN) -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

book: $(STAMP)
	@$(RUN) book/run.py --profile $(PROFILE) $(if $(JOBS),--jobs $(JOBS))

# One thread per test process: small tensors gain nothing from more, and lose much when processes compete.
test: $(STAMP)
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n $(TEST_JOBS) --dist worksteal

lint: $(STAMP)
	@$(RUN) -m ruff check . && $(RUN) -m ruff format --check .

smoke: $(STAMP)
	@$(RUN) book/run.py --profile smoke --out _build/smoke $(if $(JOBS),--jobs $(JOBS))

bench: $(STAMP)
	@OMP_NUM_THREADS=1 $(RUN) benchmarks/run.py $(BENCH)

torture: $(STAMP)
	@OMP_NUM_THREADS=1 NLS_TORTURE_KILLS=$(KILLS) $(RUN) -m pytest -q tests/test_torture.py tests/test_cluster.py

site-check: $(STAMP)
	@$(RUN) book/check_site.py && $(RUN) book/browse_site.py

clean:
	@rm -rf _build .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
