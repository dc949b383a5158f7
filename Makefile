# A fresh machine needs only Python 3.11 to 3.13 and make: every target creates or updates .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
STAMP := $(VENV)/.installed

.PHONY: setup lock demo serve test test-fast fuzz audit check docs format clean

setup: $(STAMP)

# pip installs the uv that the lock pins; uv installs the rest and removes what is not in the lock. Every hash is
# verified. setuptools is in the lock too, so building the project downloads nothing.
$(STAMP): requirements.lock pyproject.toml s2s_ray/service/deploy/vendor.py
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v < (3, 14) else "s2s-ray needs Python 3.11 to 3.13, %s is %d.%d: make PYTHON=python3.12 ..." % (sys.executable, v[0], v[1]))'
	$(PYTHON) -m venv $(VENV)
	sed -n '/^uv==/,/[^\\]$$/p' requirements.lock | $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r /dev/stdin
	$(UV) pip sync --quiet --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	$(BIN)/python -m s2s_ray.service.deploy.vendor
	touch $@

lock: ## pin all extras and groups for every supported Python and platform; LOCK=--upgrade also upgrades versions
	$(UV) pip compile --quiet --universal --python-version 3.11 --all-extras --group dev --group bench --generate-hashes --no-annotate --custom-compile-command "make lock" $(LOCK) -o requirements.lock pyproject.toml

demo: $(STAMP) ## a procedural city, a trained model and a service that localises its panoramas, in ./demo
	$(BIN)/python -m jobs.demo

serve: $(STAMP) ## serve the demo's release on 127.0.0.1:8000 until Ctrl-C
	$(BIN)/python -m serve --registry demo/registry --name demo

# Two processes, one test file each at a time, long files first. PyTorch runs single-threaded to avoid contention.
UNIT := $(filter-out tests/integration/ tests/chaos/ tests/gpu/ tests/support/,$(wildcard tests/*/)) $(wildcard tests/test_*.py)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(STAMP) ## all tests
	$(PYTEST)

test-fast: $(STAMP) ## unit tests except the slowest, and one end-to-end run
	$(PYTEST) -m "not slow" tests/integration/test_end_to_end.py $(UNIT)

fuzz: $(STAMP) ## send 20,000 damaged uploads to the application in process
	S2S_FUZZ=20000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s tests/service/test_fuzz.py

audit: $(STAMP) ## look up known vulnerabilities of the locked dependencies in an online database
	$(UV) pip install --quiet --python $(BIN)/python --target $(VENV)/audit pip-audit
	PYTHONPATH=$(VENV)/audit $(BIN)/python -m pip_audit --no-deps --disable-pip -r requirements.lock

check: $(STAMP) docs ## linters, spelling, import contracts, types and documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/lint-imports
	$(BIN)/mypy

docs: $(STAMP) ## build the documentation in build/site; dead links and missing names are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) demo build .import_linter_cache .mypy_cache .pytest_cache .ruff_cache s2s_ray.egg-info
