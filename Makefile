.DEFAULT_GOAL := help
.PHONY: help setup repro test test-all store pull lint bench lock

PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
PYTEST := pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder --durations=25

help: ## Show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 10

setup: .venv/.ready ## Make the virtual environment from the lock (PYTHON=python3.12 chooses the interpreter)

.venv/.ready: requirements/lock.txt requirements/uv.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or later is needed, $(PYTHON) is older: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	$(BIN)/uv pip install --python $(BIN)/python --quiet --compile-bytecode --require-hashes -r requirements/lock.txt
	$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --no-build-isolation -e .
	@# DVC would keep its cache in /var/tmp/dvc, where everyone may write, and reads pickles from it.
	@[ ! -d .dvc ] || $(BIN)/dvc config --local core.site_cache_dir "$(CURDIR)/.dvc/tmp/site"
	@touch $@

repro: setup ## Rebuild what changed, push it, show the metrics and the plots page
	@bintally repro

test: setup ## Run the tests but the slow ones: eight minutes on two quiet cores (WORKERS=4 for more processes than 2)
	@python tests/install_browser.py
	@$(PYTEST) -m "not slow"

test-all: setup ## Run every test, the slow ones as well
	@python tests/install_browser.py
	@$(BIN)/uv pip install --python $(BIN)/python --quiet --require-hashes -r requirements/ray.txt
	@$(PYTEST)

store: setup ## Run the loopback S3 server in the foreground (PUBLIC=bucket lets anyone read one)
	@bintally store $(if $(PUBLIC),--public $(PUBLIC))

pull: setup ## Fetch data, models and the run-cache from the default remote
	@bintally pull

lint: setup ## Check style and types
	@ruff check .
	@ruff format --check .
	@mypy

bench: setup ## Print the figures of docs/benchmarks.md as JSON
	@for script in fetch transfer experiment train predict serve; do python benchmarks/$$script.py || exit 1; done

lock: setup ## Pin the newest release of every package
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--no-annotate --extra dev pyproject.toml -o requirements/lock.txt --upgrade
	@# Beside the lock, for a recipe in deploy/ and its test alone.
	@echo ray | uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-header --no-annotate --constraints requirements/lock.txt - -o requirements/ray.txt --upgrade
