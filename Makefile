# Everything lives in .venv; nothing is needed but Python >= 3.11, make and a package index.
PYTHON ?= python3
BIN := .venv/bin
unexport PYTHONDONTWRITEBYTECODE # what is compiled anew in every process costs a start a second

.PHONY: demo test test-real faults faults-deployed e2e lint check install clean

demo: install ## co-tune a real LLM with four real clients, and write a report
	$(BIN)/cotune run configs/quickstart.yaml

test: install ## the default suite: offline, CPU, under three minutes
	$(BIN)/python -m pytest -n auto --dist worksteal

test-real: install ## the real 135M model, and a chat server that others wrote; takes several minutes
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[real]"
	$(BIN)/python -m pytest -m real -p no:randomly

faults: install ## what can be done to a run in one process, and how it ends; minutes
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/faults.py --embedded --out benchmarks/results/faults.json --table docs/faults.md

faults-deployed: install ## the same between processes: kills, cuts, slow clients; half an hour
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/faults.py --deployed --out benchmarks/results/faults.json --table docs/faults.md

e2e: install ## a SuperLink and three SuperNodes with TLS, masked sums and noise; two crashes; minutes
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/deployed.py --out benchmarks/results/deployed.json

lint: install ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"cotune needs Python 3.11 or newer; $(PYTHON) is {v[0]}.{v[1]}. Try: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

clean: ## the environment and caches; runs/ stays
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
