# make demo | test | lint | bench | bench-peers | lessons | build | clean. Each sets up what it needs.
#   PYTHON=python3.12 VENV=    use that interpreter and what is installed in it, no virtual environment
PYTHON ?= python3
VENV ?= .venv

ifeq ($(strip $(VENV)),)
PY := $(PYTHON)
DEPS :=
else
PY := $(VENV)/bin/python
DEPS := $(VENV)/.installed
endif
CLANG_FORMAT := $(if $(strip $(VENV)),$(VENV)/bin/)clang-format
RUN := PYTHONPATH=$(CURDIR) $(PY)

.PHONY: build demo test lint bench bench-peers lessons clean

build: $(DEPS)
	@$(PY) setup.py -q build_ext --inplace

$(VENV)/.installed: constraints.txt
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install -q --disable-pip-version-check -r constraints.txt
	@touch $@

demo: build
	@$(RUN) -m fastcv.demo $(if $(DATA),--data "$(DATA)") --output demo-output

# With the emulator, so that the CUDA kernels are tested too (docs/cuda.md).
test: export FASTCV_EMULATOR = ON
# Two processes where pytest-xdist is installed; their threads wait without spinning, so that they share the cores.
test: build
	@OMP_WAIT_POLICY=passive $(RUN) -m pytest $(shell $(PY) -c "import xdist; print('-n 2 --dist worksteal')" 2>/dev/null)

lint: $(DEPS)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@git ls-files -co --exclude-standard '*.h' '*.cpp' '*.cu' '*.cuh' | xargs $(CLANG_FORMAT) --dry-run --Werror

bench: build
	@$(RUN) benchmarks/ops.py $(BENCH)

# Whole models against torch.compile, ONNX Runtime and OpenVINO (docs/bench.md); PEERS="--models resnet50 --resume" for some.
bench-peers: build
	$(if $(strip $(VENV)),@$(PY) -m pip install -q --disable-pip-version-check -r benchmarks/peers.txt)
	@OMP_WAIT_POLICY=passive $(RUN) benchmarks/engines.py $(PEERS)

# The course's figures on these kernels: one page, lessons-output/index.html (docs/vision.md).
lessons: build
	@OMP_WAIT_POLICY=passive $(RUN) examples/lessons/build.py --output lessons-output

clean:
	rm -rf build $(VENV) fastcv/*.so fastcv/__pycache__ demo-output lessons-output train-output .pytest_cache .ruff_cache .hypothesis
