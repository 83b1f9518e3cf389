# Two commands on a fresh machine: `make demo` and `make test`. Both make .venv and install first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test check nightly docs clean

demo: $(STAMP)
	$(BIN)/wsa demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The slow tests and the site as well: full-size crash, damage and all-games runs, and many more examples.
nightly: $(STAMP) docs
	HYPOTHESIS_PROFILE=nightly $(BIN)/python -m pytest -n 2 --dist worksteal -m "slow or not slow" --timeout 3600

# What CI holds beside the tests: style, types, and the direction of imports.
check: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy && $(BIN)/pyright && $(BIN)/lint-imports

# The site, into build/site; a broken link or anchor, or a public name without a docstring, fails.
docs: $(VENV)/.docs
	$(BIN)/python docs/reference/make_commands.py
	$(BIN)/python docs/reference/make_python.py
	$(BIN)/zensical build --strict --clean

$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --group docs
	touch $@

$(STAMP): pyproject.toml
	@echo "Installing into $(VENV), which takes minutes: torch and its libraries are gigabytes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	@# The warning is setuptools' for any editable package at the root of its repository.
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable ".[lite,cpu]" --group dev
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .demo
