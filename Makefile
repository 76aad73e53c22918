# Every target sets itself up in .venv; only Python 3.11 or newer and pip are needed.
PYTHON ?= python3
PY := .venv/bin/python
RUN_DIR ?= runs/demo

.PHONY: demo test test-all lint clean

.venv/train: pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --editable '.[train]'
	touch $@

.venv/test: pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --editable '.[test]'
	touch $@

# Trains a ResNeXt on handwritten digits and classifies held-out ones from the saved checkpoint, in a new process.
demo: .venv/train
	$(PY) -m train --config configs/digits_resnext.py --workdir $(RUN_DIR)
	$(PY) -m train.predict --workdir $(RUN_DIR)

test: .venv/test lint
	$(PY) -m pytest -m 'not slow'

# Also the numeric parity of every registered name and the reader on every torchvision network: hours on 2 cores.
test-all: .venv/test lint
	$(PY) -m pytest

lint: .venv/test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

clean:
	rm -rf .venv
