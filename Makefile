# make train: install, then train the default experiment; make test: install, then run the tests.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: train test lint install clean

train: $(STAMP)
	$(RUN) train.py experiment=mixing/digits

# in as many processes as there are cores, eight at most
test: $(STAMP)
	$(RUN) -m pytest -n auto --maxprocesses=8 --dist=worksteal

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

install: $(STAMP)

# uv itself comes from the machine, or into the virtual environment by pip
$(STAMP): requirements.lock
	@if command -v uv >/dev/null 2>&1; then uv venv -q --allow-existing -p $(PYTHON) $(VENV); \
	else $(PYTHON) -m venv $(VENV) && $(VENV)/bin/python -m pip install -q uv; fi
	@uv=$$(command -v uv || echo $(VENV)/bin/uv); $$uv pip install -q --compile-bytecode -p $(RUN) --require-hashes -r requirements.lock
	@touch $@

# new pins from pyproject.toml (names no index)
lock:
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --all-extras pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
