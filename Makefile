# Two commands for a new clone: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test test-all lint clean

$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e .
	touch $@

$(VENV)/installed-test: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet -e '.[test]'
	touch $@ $(VENV)/installed

# Teaches the embedded base a subject that it has never seen, on the CPU, and shows where the pictures are.
demo: $(VENV)/installed
	$(BIN)/jaxbooth train configs/demo.yaml
	$(BIN)/jaxbooth sample runs/demo --prompt "a sks stuffed animal with a mountain in the background" --num 4 --steps 30 --guidance 3 --out runs/demo/extra

test: $(VENV)/installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: $(VENV)/installed-test
	$(BIN)/pip install --quiet -e '.[test,fleet]'
	$(BIN)/python -m pytest -m ""

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) runs build *.egg-info
