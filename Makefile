# Each target creates what it needs: a fresh clone needs python3 (3.10 or newer) and make.
PYTHON ?= python3
VENV ?= .venv
BENCH_VENV ?= .venv-bench
SERVER := $(VENV)/.server
DEV := $(VENV)/.dev
BENCH := $(BENCH_VENV)/.bench
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(VENV)/bin/python -m pytest

.PHONY: demo test test-slow test-by-hand lint format bench docs dist clean

demo: $(SERVER)
	$(VENV)/bin/streamseg demo --out demo-out

# The tests of a file run in one worker because they share fixtures; each worker has one torch thread.
# Tests marked "alone" measure rates and ages, so nothing may run at the same time.
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

# The packages of other trackers overwrite the headless cv2, so they have an environment of their own.
bench: $(BENCH)
	$(BENCH_VENV)/bin/streamseg bench --out bench-out

docs: $(DEV)
	$(VENV)/bin/python tools/protocol_doc.py

# The source distribution and the wheel.
dist: $(DEV)
	rm -rf dist
	$(VENV)/bin/python -m build --outdir dist

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(BENCH_VENV)/bin/python:
	$(PYTHON) -m venv $(BENCH_VENV)

$(SERVER): pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --editable '.[server,view,mqtt]'
	@touch $@

# trackeval without its dependencies: its metrics need only numpy and scipy, and its opencv-python
# would overwrite the headless cv2. The complaint of `pip check` can be ignored.
$(DEV): pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --editable '.[server,view,mqtt,train,dev]'
	$(VENV)/bin/python -m pip install --quiet --no-deps 'trackeval>=1.3'
	@touch $@

$(BENCH): pyproject.toml | $(BENCH_VENV)/bin/python
	$(BENCH_VENV)/bin/python -m pip install --quiet --editable '.[server,bench]'
	@touch $@

clean:
	rm -rf $(VENV) $(BENCH_VENV) demo-out bench-out dist build
