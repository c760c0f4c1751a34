# make demo     a distillation on real digits, from nothing to a table and a report
# make fashion  ten methods on Fashion-MNIST, resumed where it was interrupted
# make test     the whole test suite
# make lint     format, style, spelling and types
# make docs     the documents as a site in site/, links checked, the notebook run
# make gpu-report  tests, times and memory on a GPU, in at most 8 minutes
# make install  the package with its tested requirements
# make clean    remove what these made
#
# Variables: PYTHON (interpreter that makes the environment), VENV (its
# folder), PIP_ARGS (more arguments of pip install), SEEDS, METHODS, JOBS and
# WORK_DIR (demo, fashion; WORK_DIR also gpu-report), PYTEST_ARGS (test).

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
PYTEST_ARGS ?=
SEEDS ?=
METHODS ?=
JOBS ?=
TABLE :=
WORK_DIR ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS)
STAMPS := $(VENV)/.stamps
HINT := echo 'To use the tools, activate the environment first: source $(VENV)/bin/activate'

.PHONY: demo fashion test lint docs gpu-report install clean
.DELETE_ON_ERROR:

fashion: TABLE := --data fashion-mnist --resume

demo fashion: $(STAMPS)/package $(STAMPS)/demo
	$(BIN)/python tools/demo.py $(TABLE) \
	    $(if $(SEEDS),--seeds $(SEEDS)) \
	    $(if $(METHODS),--methods "$(METHODS)") \
	    $(if $(JOBS),--jobs $(JOBS)) \
	    $(if $(WORK_DIR),--work-dir "$(WORK_DIR)")
	@$(HINT)

test: $(STAMPS)/package $(STAMPS)/tests
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile $(PYTEST_ARGS)

# mypy reads the types of what the package imports.
lint: $(STAMPS)/package $(STAMPS)/tests $(STAMPS)/lint
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/codespell
	$(BIN)/mypy

# The variable silences an advertisement.
docs: $(STAMPS)/package $(STAMPS)/demo $(STAMPS)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

gpu-report: $(STAMPS)/package $(STAMPS)/tests
	$(BIN)/python tools/benchmarks/gpu_report.py $(if $(WORK_DIR),--out "$(WORK_DIR)")

install: $(STAMPS)/package
	@$(HINT)

# A half-made environment would look complete to the next run.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo 'error: $(PYTHON) is older than Python 3.10 or missing; give' \
	           'another one with PYTHON=...' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo 'error: $(PYTHON) cannot make virtual environments; on Debian' \
	           'and Ubuntu run: sudo apt install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv "$(VENV)" || { rm -rf "$(VENV)"; exit 1; }

$(STAMPS)/runtime: requirements/runtime.txt requirements/mmcv.txt \
                   requirements/build.txt | $(BIN)/python
	$(PIP) -r requirements/build.txt -r requirements/runtime.txt
	@# Whatever MMCV there is, is kept; the package says if it does not fit.
	$(BIN)/python -c 'import importlib.util as u, sys; \
	    sys.exit(u.find_spec("mmcv") is None)' || \
	    $(PIP) -r requirements/mmcv.txt
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/package: setup.py setup.cfg pyproject.toml $(STAMPS)/runtime
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(STAMPS)/demo $(STAMPS)/tests $(STAMPS)/lint $(STAMPS)/docs: \
        $(STAMPS)/%: requirements/%.txt | $(BIN)/python
	$(PIP) -r $<
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/tests: requirements/demo.txt requirements/export.txt

clean:
	rm -rf "$(VENV)" build dist site *.egg-info crd_plugin/.mim .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
