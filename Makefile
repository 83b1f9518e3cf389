# Two commands on a fresh machine: `make demo` and `make test`. Both make .venv and install first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test check nightly clean

demo: $(STAMP)
	$(BIN)/wsa demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The slow tests as well: full-size crash, damage and all-games runs, and many more examples.
nightly: $(STAMP)
	HYPOTHESIS_PROFILE=nightly $(BIN)/python -m pytest -n 2 --dist worksteal -m "slow or not slow" --timeout 3600

# What CI holds beside the tests: style, types, and the direction of imports.
check: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy && $(BIN)/pyright && $(BIN)/lint-imports

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable ".[lite,cpu]" --group dev
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .demo
