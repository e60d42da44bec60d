PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-keras test-torch-tflite check bench bench-numerics bench-capabilities bench-tflite bench-modules bench-accuracy bench-training clean

demo: $(VENV)/installed
	$(BIN)/fewbits demo

test: $(VENV)/installed
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test-keras: $(VENV)/installed-keras
	$(BIN)/python -m pytest tests/test_from_keras.py tests/models/test_keras_archive.py tests/training/test_keras.py

test-torch-tflite: $(VENV)-torch-tflite/installed
	$(VENV)-torch-tflite/bin/python -m pytest tests/models/test_torch_litert.py

check: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/installed-bench
	$(BIN)/python -m bench

bench-numerics: $(VENV)/installed-bench
	$(BIN)/python -m bench.numerics

bench-tflite: $(VENV)/installed-keras
	$(BIN)/python -m bench.tflite

bench-capabilities: $(VENV)/installed-bench
	$(BIN)/python -m bench.capabilities

bench-modules: $(VENV)/installed-bench
	$(BIN)/python -m bench.modules

bench-accuracy: $(VENV)/installed-bench
	$(BIN)/python -m bench.accuracy

bench-training: $(VENV)/installed-bench
	$(BIN)/python -m bench.training

$(VENV)/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "fewbits needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

$(VENV)/installed-bench: $(VENV)/installed requirements-bench.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-bench.lock
	touch $@

$(VENV)/installed-keras: $(VENV)/installed requirements-keras.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-keras.lock
	touch $@

$(VENV)-torch-tflite/installed: requirements-torch-tflite.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)-torch-tflite
	$(VENV)-torch-tflite/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-torch-tflite.lock
	$(VENV)-torch-tflite/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-torch-tflite
