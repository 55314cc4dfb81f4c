# `make demo` and `make test` need Python 3.11 (3.10 to 3.13), pip, g++ and make; they set up the rest in .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= 2.13.0
SOURCES := $(shell git ls-files csrc) CMakeLists.txt setup.py pyproject.toml
CXX_FILES := $(shell git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'tests/*.h')
PYTHON_FILES := conv2affine tests examples benchmarks setup.py

.PHONY: test mutations demo bench lint format clean cuda-compile cuda-sanitize cuda-check
.DELETE_ON_ERROR:

test: $(VENV)/installed
	$(BIN)/pytest --cov=conv2affine --cov-report=term-missing:skip-covered

# A thousand mutated ONNX files: each gives a right result or a clear error.
mutations: $(VENV)/installed
	$(BIN)/python tests/onnx_mutations.py 1000

demo: $(VENV)/installed
	$(BIN)/python examples/digits.py --output build/demo

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks --output build/bench
	$(BIN)/python -m benchmarks.networks

lint: $(VENV)/tools
	$(BIN)/ruff check $(PYTHON_FILES)
	$(BIN)/ruff format --check $(PYTHON_FILES)
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: $(VENV)/tools
	$(BIN)/ruff check --fix $(PYTHON_FILES)
	$(BIN)/ruff format $(PYTHON_FILES)
	$(BIN)/clang-format -i $(CXX_FILES)

# What can be known of the CUDA backend without a GPU; docs/cuda.md has the rest.
CUDA_TORCH ?= 2.14.1
NVCC ?= $(firstword $(wildcard $(CUDA_HOME)/bin/nvcc /usr/local/cuda/bin/nvcc) nvcc)
CUDA_ARCHITECTURES := 75 80 86 90 100 120

# Each .cu alone, without torch, for all architectures; registers that spill to memory are errors.
cuda-compile:
	mkdir -p build
	for file in $$(git ls-files 'csrc/*.cu'); do \
	  $(NVCC) -std=c++20 -Icsrc -Werror=all-warnings -Xptxas=-warn-spills,-warn-lmem-usage --threads=2 \
	    $(foreach sm,$(CUDA_ARCHITECTURES),-gencode arch=compute_$(sm),code=sm_$(sm)) \
	    -gencode arch=compute_$(lastword $(CUDA_ARCHITECTURES)),code=compute_$(lastword $(CUDA_ARCHITECTURES)) \
	    -c $$file -o build/cuda-compile.o && echo "$$file compiles" || exit 1; \
	done

# The emulated kernels, watched for accesses out of bounds and undefined behaviour.
cuda-sanitize: $(VENV)/installed
	CONV2AFFINE_EMULATION_FLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all" \
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
	  $(BIN)/pytest tests/test_emulation.py

# The wheel for a torch with CUDA, and all tests with it, on a copy of the tree without the package's source. The new
# environment takes 6 GB, and is removed again.
cuda-check: cuda-compile
	environment=$$(mktemp -d) && trap 'rm -rf "$$environment"' EXIT && $(PYTHON) -m venv $$environment && \
	mkdir $$environment/tree && git ls-files -z | xargs -0 cp --parents -t $$environment/tree && \
	cd $$environment/tree && export PATH=$$environment/bin:$$PATH && \
	pip install --quiet torch==$(CUDA_TORCH) numpy 'setuptools>=77' cmake ninja 'pybind11>=3' && \
	CONV2AFFINE_CUDA=ON pip wheel --quiet --no-build-isolation --no-deps . && rm -r conv2affine && \
	pip install --quiet "$$(ls conv2affine-*.whl)[bench,test]" && pip install --quiet --no-deps einconv && \
	pytest tests

clean:
	rm -rf build dist $(VENV) *.egg-info conv2affine/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
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
	$(BIN)/pip install --quiet --no-deps einconv relucent
	touch $@

# Editable: Python changes are there at once, C++ changes at the next make.
$(VENV)/installed: $(VENV)/tools $(SOURCES)
	$(BIN)/pip install --quiet --no-build-isolation -e .
	touch $@
