# `make` alone lists the targets. Everything runs in .venv (what needs Airflow in .venv-airflow), which
# is made when first needed and again when pyproject.toml or its constraints change.
.DEFAULT_GOAL := help
.PHONY: help demo test test-all unit sweep matrix damage faults faults-planted bench walk wheel check fmt clean install \
	test-airflow airflow-cluster airflow-bench airflow
MAKEFLAGS += --no-builtin-rules
BIN := .venv/bin
AIRFLOW := .venv-airflow/bin
PYTHON ?= python3

help:
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

demo: install ## a million rows on two throw-away servers, a day copied
	@$(BIN)/copypipe demo

# Three at a time, each with servers of its own: many tests wait for something. On two cores it takes
# 5 to 6 minutes; of families of like cases a sample runs (`one_of`), all of them in `make test-all`.
test: install ## the suite, on real servers of two majors
	@$(BIN)/python -m pytest -n 3 --dist worksteal

test-all: install ## the suite with all variants of its cases
	@$(BIN)/python -m pytest -n 3 --dist worksteal --variants

unit: install ## the tests that need no server
	@$(BIN)/python -m pytest tests/unit

test-airflow: airflow ## the Airflow operators, in an environment of their own (600 MB)
	@$(AIRFLOW)/python -m pytest -W default tests/with_airflow

airflow-cluster: airflow ## a small Airflow with Celery and Redis, a worker of which is killed
	@$(AIRFLOW)/python scripts/airflow_cluster.py $(ARGS)

airflow-bench: airflow ## measure the operator beside a cursor loop; ARGS=--rounds 1
	@$(AIRFLOW)/python scripts/bench_airflow.py $(ARGS)

sweep: install ## the whole sweeps, of which the suite takes samples
	@$(BIN)/python -m pytest --slow -m slow --timeout=7200

matrix: install ## every type into every other, of which the suite takes samples; part of sweep
	@$(BIN)/python -m pytest --slow --timeout=7200 tests/integration/test_matrix.py

damage: install ## 200 damaged days of up to 50,000 rows, each found; part of sweep
	@$(BIN)/python -m pytest --slow --timeout=7200 tests/integration/verify/test_damage.py

faults: install ## every fault at every place of a copy; resumes, takes an hour; ARGS=--matrix
	@$(BIN)/python scripts/faults.py --jobs 2 $(ARGS)

faults-planted: install ## plant nine defects; the sweeps must find each
	@$(BIN)/python scripts/faults.py --planted

bench: install ## measure against psql and others; ARGS=--quick takes two minutes
	@if command -v uv >/dev/null 2>&1; then pip='uv pip install --python $(BIN)/python'; \
	else pip='$(BIN)/python -m pip install --disable-pip-version-check'; fi; \
	$$pip --quiet -c constraints.txt -e '.[bench]'
	@$(BIN)/python scripts/bench.py $(ARGS)

bench-migrate: install ## measure migrate beside pg_dump and pgcopydb; ARGS=--only users
	@$(BIN)/python scripts/bench_migrate.py $(ARGS)

wheel: install ## a wheel with the compiled scan in dist/; needs a C compiler
	@HATCH_BUILD_HOOK_ENABLE_MYPYC=1 $(BIN)/python -m build --outdir dist >/dev/null && ls dist/*.whl

walk: ## follow the README as a newcomer would, in an empty directory
	@$(PYTHON) scripts/walk.py

check: install ## lint, format, types, levels; writes nothing
	@$(BIN)/ruff check --quiet && $(BIN)/ruff format --check --quiet && $(BIN)/mypy && $(BIN)/python -m pytest -q tests/unit/test_levels.py

fmt: install ## format, and fix what can be fixed
	@$(BIN)/ruff check --quiet --fix; $(BIN)/ruff format --quiet

clean: ## remove both environments and every cache
	@rm -rf .venv .venv-airflow .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.* build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

install: .venv/.installed
airflow: .venv-airflow/.installed

.venv/.installed: EXTRAS = demo,dev
.venv/.installed: PINS = constraints.txt
.venv-airflow/.installed: EXTRAS = airflow,demo,dev,dev-airflow
.venv-airflow/.installed: PINS = constraints-airflow.txt
.venv/.installed: constraints.txt
.venv-airflow/.installed: constraints-airflow.txt

# uv where it is installed, else venv and pip. Without a home to write to there is no cache.
.venv/.installed .venv-airflow/.installed: pyproject.toml
	@echo 'installing copypipe and what it is tested with into $(@D) ...' >&2
	@set -e; rm -rf $(@D); cache=; \
	if command -v uv >/dev/null 2>&1; then \
	  [ -w "$$HOME" ] || cache=--no-cache; \
	  uv venv $$cache --quiet --python '>=3.11' $(@D); \
	  uv pip install $$cache --quiet --python $(@D)/bin/python -c $(PINS) -e '.[$(EXTRAS)]'; \
	else \
	  [ -w "$$HOME" ] || cache=--no-cache-dir; \
	  python=; for p in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	    if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$p; break; fi; \
	  done; \
	  [ "$$python" ] || { echo 'missing: Python 3.11 or newer, or uv' >&2; exit 1; }; \
	  $$python -c 'import ensurepip, venv' 2>/dev/null || { echo 'missing: python3-venv (apt-get install python3-venv), or uv' >&2; exit 1; }; \
	  $$python -m venv $(@D); \
	  $(@D)/bin/python -m pip install $$cache --quiet --disable-pip-version-check -c $(PINS) -e '.[$(EXTRAS)]'; \
	fi; touch $@
