# `make demo` and `make test` need Python 3.11 (3.10 to 3.13), pip, g++ and make; they set up the rest in .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= 2.13.0
SOURCES := $(shell git ls-files csrc) CMakeLists.txt build_backend.py setup.py pyproject.toml
CXX_FILES := $(shell git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'tests/*.h')
PYTHON_FILES := conv2affine tests examples benchmarks docs build_backend.py setup.py

.PHONY: test test-all coverage demo bench docs lint format wheel wheel-check sdist release-check fuzz sanitize sanitize-threads clean cuda-compile cuda-sanitize cuda-check petsc-check
.DELETE_ON_ERROR:

# In minutes, before a commit: without the long products of cases. One thread a process, as there is one for each core;
# each process takes whole files, which share fixtures.
test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile -m "not long and not serial"
	$(BIN)/pytest -m "serial and not long" tests

# All tests.
test-all: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile -m "not serial"
	$(BIN)/pytest -m serial tests

# Which lines no test runs; takes longer than the tests alone.
coverage: $(VENV)/installed
	$(BIN)/pytest --cov=conv2affine --cov-report=term-missing:skip-covered

demo: $(VENV)/installed
	$(BIN)/python examples/digits.py --output build/demo

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks --output build/bench
	$(BIN)/python -m benchmarks.networks

# The documentation site: build/docs/index.html. Runs the examples of the gallery; warnings and broken links are errors.
docs: $(VENV)/installed
	rm -rf build/docs docs/gallery
	$(BIN)/python -m sphinx --quiet --fresh-env --fail-on-warning --keep-going --doctree-dir build/doctrees \
	  docs build/docs
	$(BIN)/python docs/check_links.py build/docs

# dist/: the sdist and, made from it, the wheel, which holds the compiled part for each of these. It then runs the start
# page's example where the source is not. torch brings its own libraries, libgomp among them.
WHEEL_TORCHES ?= 2.13.0 2.14.1
WHEEL_FOLDERS := $(WHEEL_TORCHES:%=$(CURDIR)/build/torch/%/torch)
wheel: $(VENV)/tools $(WHEEL_FOLDERS:=/version.py)
	rm -rf dist build/wheel
	CONV2AFFINE_TORCH=$$(echo $(WHEEL_FOLDERS) | tr ' ' :) CONV2AFFINE_CUDA=OFF \
	  $(BIN)/python -m build --no-isolation --outdir build/wheel .
	PATH=$(CURDIR)/$(BIN):$$PATH auditwheel repair --exclude 'libc10*.so' --exclude 'libtorch*.so' \
	  --exclude libgomp.so.1 --wheel-dir dist build/wheel/*.whl
	mv build/wheel/*.tar.gz dist
	$(MAKE) wheel-check

sdist:
	$(PYTHON) -m venv build/sdist && build/sdist/bin/pip install --quiet build
	build/sdist/bin/python -m build --sdist --outdir dist .

# Whether the tag fits the version: make release-check TAG=v0.3.0
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
release-check:
	@test "$(TAG)" = "v$(VERSION)" || { echo "the tag ($(TAG)) must be v$(VERSION), as in pyproject.toml"; exit 1; }
	@grep -q '^## \[$(VERSION)\] - 2' CHANGELOG.md || { echo "CHANGELOG.md must have a section [$(VERSION)] with a date"; exit 1; }

# The wheel in dist/ for this Python, in a new environment that has this torch already, and keeps it.
wheel-check:
	fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && $(PYTHON) -m venv $$fresh/venv && \
	$$fresh/venv/bin/pip install --quiet torch==$(TORCH) && \
	$$fresh/venv/bin/pip install --quiet --no-deps --no-index --find-links dist conv2affine && \
	$$fresh/venv/bin/pip install --quiet torch==$(TORCH) conv2affine && $$fresh/venv/bin/pip check && cd $$fresh && \
	venv/bin/python -m doctest $(CURDIR)/docs/index.md && \
	venv/bin/python -c "import conv2affine; print('the wheel works with torch $(TORCH):', conv2affine.__file__)"

# A torch to build for: its headers and libraries, without what it requires.
$(CURDIR)/build/torch/%/torch/version.py:
	$(BIN)/pip install --quiet --no-deps --target build/torch/$* torch==$*

# Fuzzing and fault injection: an hour, or two minutes with FUZZ=short. docs/testing.md has the findings.
FUZZ ?= long
fuzz: $(VENV)/installed
	$(BIN)/python -m tests.fuzzing $(if $(filter short,$(FUZZ)),--short)

# The CPU's operators, watched for accesses out of bounds and undefined behaviour: their tests, and nonsense.
sanitize: $(VENV)/tools
	rm -rf build/sanitize && mkdir -p build/sanitize
	cp -r --parents $$(git ls-files conv2affine) build/sanitize
	$(BIN)/cmake -S . -B build/sanitize/cmake -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -DCONV2AFFINE_CUDA=OFF \
	  -DCMAKE_BUILD_TYPE=RelWithDebInfo \
	  -DCMAKE_CXX_FLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
	$(BIN)/cmake --build build/sanitize/cmake --parallel 2
	$(BIN)/cmake --install build/sanitize/cmake --prefix build/sanitize
	export LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" && \
	export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:quarantine_size_mb=16 && \
	$(BIN)/pytest -o pythonpath="build/sanitize ." $(SANITIZED_TESTS) && \
	cd build/sanitize && PYTHONPATH=$(CURDIR) $(CURDIR)/$(BIN)/python -m tests.fuzzing nonsense --size 4000
# Without those that have no memory: sanitizers end the process where `new` would throw.
SANITIZED_TESTS := $(addprefix tests/,convolution/test_layouts.py convolution/test_taps.py operators/test_ops.py)
SANITIZED_TESTS += tests/test_matrix.py tests/test_projection.py -k "not beyond_all_memory"

# The same, watched for races, with std::thread for OpenMP and threads for the smallest matrices.
sanitize-threads: $(VENV)/tools
	rm -rf build/sanitize-threads && mkdir -p build/sanitize-threads
	cp -r --parents $$(git ls-files conv2affine) build/sanitize-threads
	$(BIN)/cmake -S . -B build/sanitize-threads/cmake -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -DCONV2AFFINE_CUDA=OFF \
	  -DCMAKE_BUILD_TYPE=RelWithDebInfo \
	  -DCMAKE_CXX_FLAGS="-fsanitize=thread -I$(CURDIR)/tests/threads -DCONV2AFFINE_GRAIN_ENTRIES=8"
	$(BIN)/cmake --build build/sanitize-threads/cmake --parallel 2
	$(BIN)/cmake --install build/sanitize-threads/cmake --prefix build/sanitize-threads
	export LD_PRELOAD="$$(g++ -print-file-name=libtsan.so)" OMP_NUM_THREADS=4 && \
	export TSAN_OPTIONS="halt_on_error=1 ignore_noninstrumented_modules=1" && \
	setarch -R $(BIN)/pytest -o pythonpath="build/sanitize-threads ." $(SANITIZED_TESTS) && \
	cd build/sanitize-threads && \
	PYTHONPATH=$(CURDIR) setarch -R $(CURDIR)/$(BIN)/python -m tests.fuzzing threads --size 400

lint: $(VENV)/tools
	$(BIN)/ruff check $(PYTHON_FILES)
	$(BIN)/ruff format --check $(PYTHON_FILES)
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[!c]*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

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
	  $(BIN)/pytest tests/operators/test_emulation.py

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

# to_petsc with Debian's PETSc and SLEPc, by one, two and three ranks, on a copy of the tree without the package's source.
# They are built for Debian's Python and for NumPy 1: so this has an environment of its own, which is removed again.
APT_GET ?= $(if $(filter 0,$(shell id -u)),,sudo) apt-get
petsc-check:
	$(APT_GET) install --quiet --quiet --yes python3-dev python3-petsc4py python3-slepc4py python3-venv
	environment=$$(mktemp -d) && trap 'rm -rf "$$environment"' EXIT && \
	/usr/bin/python3 -m venv --system-site-packages $$environment && \
	mkdir $$environment/tree && git ls-files -z | xargs -0 cp --parents -t $$environment/tree && \
	cd $$environment/tree && export PATH=$$environment/bin:$$PATH OMP_NUM_THREADS=1 && \
	export PETSC_DIR=$$(ls -d /usr/lib/petscdir/*/*-real | tail -1) SLEPC_DIR=$$(ls -d /usr/lib/slepcdir/*/*-real | tail -1) && \
	export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 && \
	pip install --quiet torch==$(TORCH) 'numpy<2' psutil hypothesis pytest 'setuptools>=77' cmake ninja 'pybind11>=3' && \
	pip wheel --quiet --no-build-isolation --no-deps . && rm -r conv2affine && \
	pip install --quiet --no-deps conv2affine-*.whl && \
	for ranks in 1 2 3; do \
	  mpiexec --oversubscribe -n $$ranks python -m pytest --quiet --color=no tests/interop/test_petsc.py || exit 1; \
	done

clean:
	rm -rf build dist docs/gallery $(VENV) *.egg-info conv2affine/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -prune -exec rm -rf {} +

# torch first and pinned: whatever else is installed then finds it there, and pulls no other.
$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==$(TORCH) numpy
	touch $@

$(VENV)/tools: $(VENV)/torch pyproject.toml
	$(BIN)/pip install --quiet 'setuptools>=77' cmake ninja 'pybind11>=3'
	$(BIN)/python -c "from setuptools.compat.py310 import tomllib; extras = tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']; print(*(r for e in ('test', 'lint', 'demo', 'bench', 'docs', 'wheel') for r in extras[e]), sep='\n')" > $(VENV)/tools.txt
	$(BIN)/pip install --quiet -r $(VENV)/tools.txt
	$(BIN)/pip install --quiet --no-deps einconv "relucent; python_version >= '3.11'"
	touch $@

# Editable: Python changes are there at once, C++ changes at the next make.
$(VENV)/installed: $(VENV)/tools $(SOURCES)
	$(BIN)/pip install --quiet --no-build-isolation -e .
	touch $@
