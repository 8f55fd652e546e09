# Every target does its own set-up: a fresh clone needs python3 (3.10 or newer) and make.
PYTHON ?= python3
VENV ?= .venv
BENCH_VENV ?= .venv-bench
SERVER := $(VENV)/.server
DEV := $(VENV)/.dev
BENCH := $(BENCH_VENV)/.bench
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(VENV)/bin/python -m pytest

.PHONY: demo test test-slow test-by-hand lint format bench docs clean

demo: $(SERVER)
	$(VENV)/bin/streamseg demo --out demo-out

# A file's tests stay together: they share what is made once. One thread of torch's for each worker.
# What measures rates and ages has the machine to itself.
test: $(DEV)
	$(PYTEST) -n logical --dist loadfile

test-slow: $(DEV)
	$(PYTEST) -m slow -n logical --dist loadfile
	$(VENV)/bin/python -m pytest -m alone

test-by-hand: $(DEV)
	$(VENV)/bin/python -m pytest -m by_hand

lint: $(DEV)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: $(DEV)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# The peers' packages overwrite the headless cv2, so they have an environment of their own.
bench: $(BENCH)
	$(BENCH_VENV)/bin/streamseg bench --out bench-out

docs: $(DEV)
	$(VENV)/bin/python tools/protocol_doc.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(BENCH_VENV)/bin/python:
	$(PYTHON) -m venv $(BENCH_VENV)

$(SERVER): pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --editable '.[server,view,mqtt]'
	@touch $@

# trackeval without what it asks for: its metrics need numpy and scipy only, and its opencv-python
# would overwrite the headless cv2. `pip check` complains, and is wrong.
$(DEV): pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --editable '.[server,view,mqtt,train,dev]'
	$(VENV)/bin/python -m pip install --quiet --no-deps 'trackeval>=1.3'
	@touch $@

$(BENCH): pyproject.toml | $(BENCH_VENV)/bin/python
	$(BENCH_VENV)/bin/python -m pip install --quiet --editable '.[server,bench]'
	@touch $@

clean:
	rm -rf $(VENV) $(BENCH_VENV) demo-out bench-out
