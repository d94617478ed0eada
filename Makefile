# Two commands: `make book` builds the book, `make test` runs the tests. Each sets up what it needs.

PYTHON    ?= python3
PROFILE   ?= book
JOBS      ?=
BENCH     ?=
KILLS     ?= 20
TEST_JOBS ?= 2
ONLY      ?= *
SET       ?=
OUT       ?= _build
ALSO      ?=
COLAB     ?= newest
REMOTE    ?= $(GITHUB_SERVER_URL)/$(GITHUB_REPOSITORY)

VENV  := .venv
RUN   := $(VENV)/bin/python
STAMP := $(VENV)/.installed
AXE   := _build/axe/package/axe.min.js

.DEFAULT_GOAL := help
.PHONY: help book test lint smoke bench torture site-check axe-check clean \
  pdf drift expected digests lint-workflows test-lowest test-newest test-recipes push-launch \
  colab-check colab-figures wheel-check

# Of the package alone, without what only the book needs.
PACKAGE_TESTS := $(addprefix tests/test_,$(addsuffix .py,losses noise posterior rates grid engine runs store stats calibration))
# What a reader types in a form reaches the command as it is; the shell never reads it as code.
SETTINGS := set -f; set --; for setting in $$SET; do set -- "$$@" --set "$$setting"; done
export SET ONLY

help:
	@echo "make book         build the book into _build/html   (PROFILE=smoke|book|laptop|paper, JOBS=notebooks at once)"
	@echo "make test         run the tests                      (TEST_JOBS=processes)"
	@echo "make drift        compare the last build's numbers with the expected ones, run cells of stored studies again"
	@echo "make expected     make the last build's numbers the expected ones   (ALSO=builds that measure movement)"
	@echo "make digests      accept the stored studies as they are"
	@echo "make lint         check style and format"
	@echo "make lint-workflows  check .github/workflows"
	@echo "make test-lowest, make test-newest   test the package on the ends of its ranges of versions"
	@echo "make wheel-check  build the wheel, try it in an environment of its own, print sizes and the time of its import"
	@echo "make colab-check  run the launch copies, last commit, as on Colab; take a machine away   (COLAB=newest|oldest)"
	@echo "make colab-figures  the same with the notebooks' defaults, until the first figure"
	@echo "make smoke        run every notebook in seconds      (into _build/smoke)"
	@echo "make test-recipes  run the recipes for timm, Lightning and Hugging Face in an environment of their own"
	@echo "make bench        measure speed side by side, print ratios (BENCH='--quick' tries it out)"
	@echo "make torture      kill, fill and damage running grids  (KILLS=20)"
	@echo "make site-check   open every page in Chromium, save screenshots to _build/screenshots"
	@echo "make push-launch  replace the branch that the Colab buttons open (REMOTE=repository)"
	@echo "make axe-check    open the pages with axe-core, which npm fetches   (AXE_PAGES='index.html ...', all by default)"
	@echo "make pdf          print the last build as one PDF, by Chromium"
	@echo "make clean        remove what was built, but not the environments"
	@echo "SET='11_uci.num_seeds=4 11_uci.strict=false' ONLY='11*' make book   change parameters, run some notebooks"
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
	@$(SETTINGS); $(RUN) book/run.py --profile $(PROFILE) --only "$$ONLY" $(if $(JOBS),--jobs $(JOBS)) "$$@"

# One thread per test process: small tensors gain nothing from more, and lose much when processes compete.
test: $(STAMP)
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n $(TEST_JOBS) --dist worksteal

lint: $(STAMP)
	@$(RUN) -m ruff check . && $(RUN) -m ruff format --check .

smoke: $(STAMP)
	@$(SETTINGS); $(RUN) book/run.py --profile smoke --out _build/smoke --only "$$ONLY" \
	  $(if $(JOBS),--jobs $(JOBS)) "$$@"

# A number of a page, a verdict, or a stored study that is not as it was: exit 1, and a report in _build/drift.md.
drift: $(STAMP)
	@OMP_NUM_THREADS=1 $(RUN) book/drift.py --out $(OUT)

expected: $(STAMP)
	@$(RUN) book/drift.py --out $(OUT) --write $(if $(ALSO),--also $(ALSO))

digests: $(STAMP)
	@$(RUN) book/drift.py --write --without-build

.venv-lint/.installed: .github/requirements-lint.txt
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install -q --disable-pip-version-check -r $<
	@touch $@

lint-workflows: .venv-lint/.installed
	@.venv-lint/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@.venv-lint/bin/zizmor --offline --quiet .github/workflows

.venv-lowest/.installed .venv-newest/.installed: .venv-%/.installed: pyproject.toml .ci/ranges.py
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python .ci/ranges.py $* dev | xargs $(@D)/bin/python -m pip install -q --disable-pip-version-check --upgrade
	@touch $@

# At the lower end old libraries are deprecated by what they bring along: matplotlib 3.8 by a newer pyparsing.
test-lowest: TOLERATED := -W ignore::DeprecationWarning
test-lowest test-newest: test-%: .venv-%/.installed
	@OMP_NUM_THREADS=1 .venv-$*/bin/python -m pytest -q -n $(TEST_JOBS) $(TOLERATED) $(PACKAGE_TESTS)

# The environment stands for Colab's: what nls needs beyond it, a launch copy must install itself.
.venv-colab-newest/.installed .venv-colab-oldest/.installed: .venv-colab-%/.installed: .ci/colab.txt .ci/colab-oldest.txt
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install -q --disable-pip-version-check --upgrade -r $< $(if $(filter oldest,$*),-c .ci/colab-oldest.txt)
	@touch $@

colab-check: .venv-colab-$(COLAB)/.installed
	@$(<D)/bin/python .ci/colab.py --only "$$ONLY"
	@$(<D)/bin/python .ci/colab.py --resume 18_text

colab-figures: .venv-colab-$(COLAB)/.installed
	@$(<D)/bin/python .ci/colab.py --only "$$ONLY" --first-figure

# Built from the sources as they are, tried outside of the checkout.
wheel-check:
	@rm -rf _build/wheel build && $(PYTHON) -m venv _build/wheel/env
	@_build/wheel/env/bin/python -m pip wheel -q --disable-pip-version-check --no-deps -w _build/wheel . && rm -rf build
	@_build/wheel/env/bin/python -m pip install -q --disable-pip-version-check _build/wheel/nls-*.whl
	@env -u PYTHONPATH _build/wheel/env/bin/python .ci/wheel.py _build/wheel/nls-*.whl
	@rm -rf _build/wheel/env

.venv-recipes/.installed: pyproject.toml .ci/ranges.py
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python .ci/ranges.py newest dev recipes | xargs $(@D)/bin/python -m pip install -q --disable-pip-version-check --upgrade
	@touch $@

# The newest of each library; with all of them wanted, none is skipped.
test-recipes: .venv-recipes/.installed
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 NLS_RECIPES=all .venv-recipes/bin/python -m pytest -q tests/test_recipes.py

bench: $(STAMP)
	@OMP_NUM_THREADS=1 $(RUN) benchmarks/run.py $(BENCH)

torture: $(STAMP)
	@OMP_NUM_THREADS=1 NLS_TORTURE_KILLS=$(KILLS) $(RUN) -m pytest -q tests/test_torture.py tests/test_cluster.py

site-check: $(STAMP)
	@$(RUN) book/check_site.py && $(RUN) book/browse_site.py

# The first page offers the PDF from then on, if it is light enough.
pdf: $(STAMP)
	@$(RUN) book/print_book.py

# One commit without history, which takes the place of the branch; the credential is that of the program gh, if any.
push-launch:
	@test -d _build/launch || { echo "no launch copies: NLS_REPOSITORY_URL=... make book" >&2; exit 1; }
	@rm -rf _build/push && cp -R _build/launch _build/push
	@git -C _build/push init -q -b launch && git -C _build/push add -A
	@git -C _build/push -c user.name=launch -c user.email=launch@localhost commit -q -m "Launch copies"
	@git -C _build/push -c credential.helper='!gh auth git-credential' push -q --force "$(REMOTE)" launch

$(AXE):
	@command -v npm >/dev/null || { echo "axe-check needs npm, which fetches axe-core" >&2; exit 1; }
	@mkdir -p _build/axe && cd _build/axe && npm pack --silent axe-core@4.14.1 >/dev/null && tar xzf axe-core-4.14.1.tgz

axe-check: $(STAMP) $(AXE)
	@$(RUN) book/axe_site.py $(AXE) $(if $(AXE_PAGES),--pages $(AXE_PAGES))

clean:
	@rm -rf _build .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './.venv*/*' -prune -exec rm -rf {} +
