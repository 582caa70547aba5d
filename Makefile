# Two commands for a newcomer: `make reproduce` and `make test`. Each makes .venv when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help reproduce test test-all durations fast lint lab bench format clean

help:
	@echo "make reproduce   re-test the papers' claims and write runs/index.html (two cores: minutes)"
	@echo "make test        lint, types and all tests"
	@echo "make test-all    also the other members of large families: every notebook in a kernel, cluster, disks, benchmarks"
	@echo "make fast        the tests that take under three minutes together"
	@echo "make lab         open JupyterLab on notebooks/start-here.ipynb"
	@echo "make bench       speed and memory against named peers, minutes; ARGS=--full for the published figures"

$(READY): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; got " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[lab,dev]"
	@touch $(READY)

reproduce: $(READY)
	$(BIN)/workbench reproduce $(ARGS)

test: $(READY) lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder -m "not exhaustive" $(ARGS)

test-all: $(READY) lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder $(ARGS)

fast: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder -m "not slow and not browser and not exhaustive" $(ARGS)

durations: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder --store-durations $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# the server's root is the checkout, not the notebook's folder: pages under runs/ can be opened from the launcher
lab: $(READY)
	$(BIN)/jupyter lab --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/notebooks/start-here.ipynb $(ARGS)

bench: $(READY)
	@$(BIN)/python -c 'from importlib.metadata import version as v; v("choix"), v("kaleido"), v("trl")' 2>/dev/null \
	  || $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[bench]"
	$(BIN)/workbench bench $(ARGS)

clean:
	rm -rf $(VENV) runs/.cache
