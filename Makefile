# Every target sets itself up in .venv; only Python 3.11 or newer and pip are needed.
PYTHON ?= python3
PY := .venv/bin/python
RUN_DIR ?= runs/demo

.PHONY: demo test test-all test-newest lint clean

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

# Transformations, layers and the training step on the newest jax, which Python 3.11 does not get.
NEWEST_PYTHON ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/3.13*/bin/python) $(shell command -v python3.13))
NEWEST_TESTS := tests/ops tests/layers tests/train/test_step.py
test-newest: pyproject.toml
	@if [ -z "$(NEWEST_PYTHON)" ]; then echo 'test-newest: skipped, there is no python3.13'; exit 0; fi; \
	set -e; test -x .venv-newest/bin/python || $(NEWEST_PYTHON) -m venv .venv-newest; \
	.venv-newest/bin/python -m pip install --quiet --editable '.[newest]'; \
	.venv-newest/bin/python -m pytest -m 'not slow' $(NEWEST_TESTS)

lint: .venv/test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

clean:
	rm -rf .venv .venv-newest
