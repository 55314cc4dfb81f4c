# `make demo` and `make test` need Python 3.11 (3.10 to 3.13), pip, g++ and make; they set up the rest in .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= 2.13.0
SOURCES := $(shell git ls-files csrc) CMakeLists.txt setup.py pyproject.toml
PYTHON_FILES := conv2affine tests examples benchmarks setup.py

.PHONY: test demo bench lint format clean
.DELETE_ON_ERROR:

test: $(VENV)/installed
	$(BIN)/pytest --cov=conv2affine --cov-report=term-missing:skip-covered

demo: $(VENV)/installed
	$(BIN)/python examples/digits.py --output build/demo

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks --output build/bench

lint: $(VENV)/tools
	$(BIN)/ruff check $(PYTHON_FILES)
	$(BIN)/ruff format --check $(PYTHON_FILES)
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp')

format: $(VENV)/tools
	$(BIN)/ruff check --fix $(PYTHON_FILES)
	$(BIN)/ruff format $(PYTHON_FILES)
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*.h' 'csrc/*.cpp')

clean:
	rm -rf build dist $(VENV) *.egg-info conv2affine/_C*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -prune -exec rm -rf {} +

# torch first and pinned: whatever else is installed then finds it there, and pulls no other.
$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==$(TORCH) numpy
	touch $@

$(VENV)/tools: $(VENV)/torch pyproject.toml
	$(BIN)/pip install --quiet 'setuptools>=77' cmake ninja 'pybind11>=3' build
	$(BIN)/python -c "import tomllib; extras = tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']; print(*(r for e in ('test', 'lint', 'demo', 'bench') for r in extras[e]), sep='\n')" > $(VENV)/tools.txt
	$(BIN)/pip install --quiet -r $(VENV)/tools.txt
	$(BIN)/pip install --quiet --no-deps einconv
	touch $@

# Editable: Python changes are there at once, C++ changes at the next make.
$(VENV)/installed: $(VENV)/tools $(SOURCES)
	$(BIN)/pip install --quiet --no-build-isolation -e .
	touch $@
