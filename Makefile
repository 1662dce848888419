# `make demo` and `make test` set everything up by themselves, in .venv; see `make help`.

PYTHON ?= python3
VENV ?= .venv
# Used when $(PYTHON) has no torch >= 2.10 of its own; further pip arguments may follow it.
TORCH ?= torch==2.13.0
MAX_JOBS ?= $(shell nproc)
export MAX_JOBS

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
LIBRARY := atlas_ext/_C.abi3.so
# Folders too: their times change when a file is added or removed.
SOURCES := setup.py $(shell find csrc)
# SANITIZE=address or thread: a build of the emulated CUDA backend of its own.
EMULATED := build/emulated$(if $(SANITIZE),-$(SANITIZE))
PYTHON_FILES := setup.py atlas_ext $(wildcard tests bench examples)
CXX_FILES = $(shell find csrc tests/cpp tests/emulation -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

HAS_TORCH := import torch; assert tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 10), torch.__version__
# A $(PYTHON) that is itself a virtual environment is not what its child's system site packages are.
SITE := import sysconfig; print(sysconfig.get_path("purelib"))
SHARE_VENV = $(PYTHON) -c '$(SITE)' > "$$($(BIN)/python -c '$(SITE)')/shared-torch.pth"

.PHONY: help setup demo test bench emulate lint format wheel sdist cmake-test clean distclean
.DELETE_ON_ERROR:

help:
	@echo "make demo        set up, train a small Atlas and its ablations on the CPU, write demo/"
	@echo "make test        set up and run the tests, also on emulated CUDA (PYTEST_ARGS=...)"
	@echo "make bench       set up and run the benchmarks     (BENCH_ARGS=...)"
	@echo "make setup       set up only: $(VENV) with torch, the compiled operators, an editable install"
	@echo "make lint        formatting, lint and types; make format repairs the formatting"
	@echo "make emulate     the CUDA kernels for the CPU     (then: pytest --backend emulated)"
	@echo "make wheel       dist/*.whl; make sdist: dist/*.tar.gz"
	@echo "make cmake-test  the CPU kernels and their CTest programs, without Python"
	@echo "make clean       remove what was built; make distclean: $(VENV) too"

setup: $(LIBRARY)

demo: $(LIBRARY)
	$(BIN)/python examples/train_lm.py --out demo $(DEMO_ARGS)

test: emulate
	$(BIN)/python -m pytest -q $(PYTEST_ARGS)
	$(if $(PYTEST_ARGS),,$(BIN)/python -m pytest -q --backend emulated)

bench: $(LIBRARY)
	$(BIN)/python -m bench.run $(BENCH_ARGS)

emulate: $(LIBRARY) $(VENV)/.emulate
	@mkdir -p $(EMULATED)
	@PATH="$(abspath $(BIN)):$$PATH"; { cmake -S . -B $(EMULATED) -G Ninja -DATLAS_EXT_EMULATED=ON \
	    -DATLAS_EXT_SANITIZE=$(SANITIZE) -DPython_EXECUTABLE="$(abspath $(BIN))/python" $(CMAKE_ARGS) \
	  && cmake --build $(EMULATED) --target emulated --parallel $(MAX_JOBS); } >$(EMULATED).log 2>&1 \
	  || { cat $(EMULATED).log; exit 1; }

lint: $(VENV)/.lint
	$(BIN)/ruff check $(PYTHON_FILES)
	$(BIN)/ruff format --check $(PYTHON_FILES)
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/mypy

format: $(VENV)/.lint
	$(BIN)/ruff check --fix $(PYTHON_FILES)
	$(BIN)/ruff format $(PYTHON_FILES)
	$(BIN)/clang-format -i $(CXX_FILES)

wheel: $(VENV)/.torch
	rm -rf build/lib*
	PATH="$(abspath $(BIN)):$$PATH" $(PIP) wheel --quiet --no-cache-dir --no-build-isolation --no-deps --wheel-dir dist .

sdist: $(VENV)/.torch
	$(BIN)/python setup.py -q sdist

cmake-test:
	cmake -S . -B build/cmake -DCMAKE_BUILD_TYPE=Release
	cmake --build build/cmake --parallel $(MAX_JOBS)
	ctest --test-dir build/cmake --output-on-failure

clean:
	rm -rf build dist demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks
	rm -f atlas_ext/_C*.so atlas_ext/_emulated*.so
	find atlas_ext tests bench examples -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean
	rm -rf $(VENV)

$(VENV)/.torch:
	@PYTHON="$(PYTHON)" .ci/check-machine
	@if $(PYTHON) -c '$(HAS_TORCH)' 2>/dev/null; then \
	  echo "==> creating $(VENV), which shares the torch that $(PYTHON) already has"; \
	  $(PYTHON) -m venv --clear --system-site-packages $(VENV); \
	  $(BIN)/python -c '$(HAS_TORCH)' 2>/dev/null || $(SHARE_VENV); \
	else \
	  echo "==> creating $(VENV)"; \
	  $(PYTHON) -m venv --clear $(VENV); \
	  echo "==> installing $(TORCH) (some hundred MB; more where pip picks the CUDA build)"; \
	  $(PIP) install $(foreach word,$(TORCH),'$(word)'); \
	fi
	@$(BIN)/python -c '$(HAS_TORCH)'
	@echo "==> installing what the build needs: setuptools wheel ninja"
	@$(PIP) install --quiet 'setuptools>=77.0.3' wheel ninja
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	@echo "==> compiling the operators ($(MAX_JOBS) jobs, a minute or two) and installing atlas_ext in place"
	@rm -f $(LIBRARY)
	@PATH="$(abspath $(BIN)):$$PATH" $(PIP) install --quiet --no-build-isolation --editable '.[test,bench,demo]'
	@touch $@

$(LIBRARY): $(SOURCES) | $(VENV)/.installed
	@echo "==> compiling what changed (build/compile.log)"
	@mkdir -p build && touch build/started
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python setup.py -q build_ext --inplace >build/compile.log 2>&1 \
	  || { cat build/compile.log; exit 1; }
	@touch -r build/started $@

$(VENV)/.emulate: $(LIBRARY)
	@echo "==> installing cmake, ninja and pybind11"
	@$(PIP) install --quiet 'atlas_ext[emulate]'
	@touch $@

$(VENV)/.lint: $(LIBRARY)
	@echo "==> installing the lint tools"
	@$(PIP) install --quiet 'atlas_ext[lint]'
	@touch $@
