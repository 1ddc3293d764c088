# Everything a fresh machine needs is Python 3.11 or newer and make.
#
#   make test T=tests/unit/test_dicom.py   one file, folder or test
#   make test PYTHON=python3.13            another Python
#   make test TORCH_INDEX=https://download.pytorch.org/whl/cpu
#                                          torch without CUDA, from PyTorch's own index: .2 GB instead of 5.5

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --retries 10 --timeout 60
SEED ?= $(shell date +%s)
STUDIES ?= 500
FILMS ?= 200
KILLS ?= 20
SMALL ?= 2000
SECONDS ?= 60
MINUTES ?= 10

# All tests run in three processes, by the groups of tests/conftest.py and in their order, each with one thread for torch.
# One of them has what waits for servers: the other two keep two cores busy.
IN_THREE := --numprocesses 3 --dist loadgroup --no-loadscope-reorder

# Whatever the shell says: without compiled modules each worker and decoder of a test compiles torch again, for 8 seconds.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: demo test suite unit coverage lint bench chaos fuzz receiver retraining containers machines away gpu demo-checkpoint audit lock help

demo: $(VENV)/installed  ## Score forty generated studies and show the morning they make
	$(BIN)/nightread demo

test: $(if $(T),$(VENV)/installed-for-tests,lint suite)  ## Check style, types and imports, then run all tests; or one: make test T=FILE
	$(if $(T),$(BIN)/pytest $(T))

suite: $(VENV)/installed-for-tests  ## Run all tests, without lint
	OMP_NUM_THREADS=1 $(BIN)/pytest $(IN_THREE)

unit: $(VENV)/installed-for-tests  ## Run the fast tests only: no server, no network (about a minute)
	$(BIN)/pytest -m "not slow" tests/unit

# Not a part of `make test`: Python 3.11 has no sys.monitoring, and tracing takes 38 % more (69 -> 95 s of processor time).
coverage: $(VENV)/installed-for-tests  ## Run the fast tests and list the lines that they do not reach
	$(BIN)/pytest -m "not slow" tests/unit --cov --cov-report=term-missing:skip-covered

lint: $(VENV)/installed-for-tests  ## Check style, types and imports only
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/installed-for-tests  ## Measure what docs/background/performance.md shows: films per second beside other ways (minutes)
	$(BIN)/python -m tests.benchmarks

chaos: $(VENV)/installed-for-tests  ## Score a load while everything breaks: make chaos SEED=7 STUDIES=500
	$(BIN)/python -m tests.drills.chaos --seed $(SEED) --studies $(STUDIES)

fuzz: $(VENV)/installed-for-tests  ## Damage headers, codestreams, messages, checkpoints and tables: make fuzz SECONDS=60 SEED=7
	$(BIN)/python -m tests.drills.fuzz --seconds $(SECONDS) --seed $(SEED)

receiver: $(VENV)/installed-for-tests  ## Send films to the DICOM receiver and kill it, beside DCMTK's storescp: FILMS=200 KILLS=20
	$(BIN)/python -m tests.drills.receiver --films $(FILMS) --kills $(KILLS) --small $(SMALL)

retraining: $(VENV)/installed-for-tests  ## From an empty database to a promoted challenger and back, on drawn films (10 to 20 minutes)
	$(BIN)/python -m tests.drills.retraining_run

containers: $(VENV)/installed-for-tests  ## Build the images and run the Compose stack, on Debian as root (a quarter of an hour, 20 GB)
	$(BIN)/python -m tests.drills.containers

machines: $(VENV)/installed-for-tests  ## Score a night on two machines made of namespaces; cut one off: make machines STUDIES=500
	$(BIN)/python -m tests.drills.two_machines --studies $(STUDIES)

away: $(VENV)/installed-for-tests  ## Kill an Orthanc to which results are due, and start it again: make away MINUTES=10 (as root)
	$(BIN)/python -m tests.drills.archive_away --minutes $(MINUTES)

gpu: $(VENV)/installed-for-tests  ## Measure this machine's GPU: films, precision, memory, training, decoding (five minutes)
	$(BIN)/python -m tests.drills.gpu

demo-checkpoint: $(VENV)/installed-for-tests  ## Draw other phantoms and train the demo's checkpoint on them (a few minutes)
	rm -rf build/demo-checkpoint
	$(BIN)/python -m worker.demo.learn

audit:  ## Ask PyPI for known weaknesses of the pinned packages; fails when one cannot be asked for
	$(PYTHON) -m venv build/audit
	build/audit/bin/pip install --quiet 'pip-audit>=2.10'
	build/audit/bin/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

lock: $(VENV)/installed-for-tests  ## Write the newest versions that fit together to constraints.txt (downloads no wheels)
	mkdir -p build
	$(PIP) install --dry-run --ignore-installed --report build/lock.json -e '.[dev]'
	$(BIN)/python -c 'import json; \
	  found = [item["metadata"] for item in json.load(open("build/lock.json"))["install"]]; \
	  pins = {each["name"] + "==" + each["version"] for each in found if each["name"] != "nightread"}; \
	  print(*sorted(pins, key=lambda pin: pin.lower().split("==")), sep="\n")' > constraints.txt

help:  ## List these commands
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

# An environment stands as long as what it was made from. Torch alone holds a minute's worth of modules that nobody will
# import, hence --no-compile; what is imported is compiled then, once. What a worker imports is compiled here: the time
# limits of films and tests do not allow for it.
$(VENV)/installed: EXTRAS :=
$(VENV)/installed-for-tests: EXTRAS := [dev]
$(VENV)/installed $(VENV)/installed-for-tests: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing into $(VENV), in a few minutes: torch with CUDA is 5.5 GB (without it: see the top of the Makefile)"
	$(if $(TORCH_INDEX),$(PIP) install --no-compile --constraint constraints.txt --index-url $(TORCH_INDEX) torch torchvision)
	$(PIP) install --no-compile --constraint constraints.txt --editable '.$(EXTRAS)'
	$(BIN)/python -c 'import worker.queue.tasks, worker.scoring.pipeline'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo >&2 "$(PYTHON) is missing or older than 3.11; name another one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' \
	  || { echo >&2 "$(PYTHON) cannot make an environment; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@$(PYTHON) -m venv $(VENV)
