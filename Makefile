# Every target sets up what it needs, from a bare Python 3.11 or later, in .venv of this directory.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
# Where only a build for one accelerator is wanted: make test TORCH=torch==2.13.0+cpu
TORCH ?= torch==2.13.0
PORT ?= 8000
# Processes that run tests. Each computes on one core: two that want both wait for each other at every step.
TESTERS ?= 2
BIN := .venv/bin
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TESTERS) --dist loadfile --no-loadscope-reorder
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-page durations lint docs bench bench-serve bench-large bench-race yardstick train students protocol constraints clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 14

demo: .venv/core.stamp ## generate twelve pictures with the embedded model, then serve it (installs no torch; Ctrl-C ends it)
	$(BIN)/stillhouse demo
	$(BIN)/stillhouse serve --port $(PORT)

test: lint ## lint, then run every test that is not marked large and needs no browser
	$(PYTEST) -m "not large and not page"

test-page: .venv/full.stamp ## test the page of the server in a browser; where there is none, say what to install
	$(PYTEST) -m page -rs tests/serve/studio

durations: .venv/full.stamp ## run the tests, and record how long each file takes
	$(PYTEST) -m "not large" -p tools.durations

lint: .venv/full.stamp ## style, format, types, layers, names, generated documents
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tools.vocabulary
	$(BIN)/python -m tools.docs --check

docs: .venv/full.stamp ## write the documents that are generated from the code
	$(BIN)/python -m tools.docs

bench: .venv/full.stamp ## measure against diffusers, and write the tables of the documents anew
	$(BIN)/python -m benchmarks.oracle
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.accelerate shapes
	$(BIN)/python -m benchmarks.accelerate choice
	$(BIN)/python -m benchmarks.real_models
	$(BIN)/python -m benchmarks.policies
	$(BIN)/python -m benchmarks.tick
	$(BIN)/python -m benchmarks.tables

bench-serve: .venv/full.stamp ## serve the same requests by this server and by others, an hour
	$(BIN)/python -m benchmarks.serving
	$(BIN)/python -m benchmarks.serving overhead
	$(BIN)/python -m benchmarks.serving rate
	$(BIN)/python -m benchmarks.tables

bench-large: .venv/full.stamp ## the size of Stable Diffusion 1.5: 5 GB of disk, some minutes
	$(BIN)/python -m benchmarks.sd15 --keep
	$(BIN)/python -m benchmarks.accelerate sd15
	$(BIN)/python -m benchmarks.cost sd15
	$(BIN)/python -m benchmarks.tables

bench-race: .venv/full.stamp ## the same pictures by other systems, in turns: 10 GB of disk, two hours
	$(INSTALL) '.[race]'
	$(BIN)/python -m benchmarks.race
	$(BIN)/python -m benchmarks.tables

yardstick: .venv/full.stamp ## hashes of latents and pixels of this tree and of another commit (AGAINST=2859d1f), compared
	$(BIN)/python -m benchmarks.yardstick $(if $(AGAINST),--against $(AGAINST))

train: .venv/full.stamp ## train the embedded model on from where it is (UPDATES=20000), ship it and judge it
	$(BIN)/python -m stillhouse.shapes.train $(if $(UPDATES),--updates $(UPDATES))
	$(BIN)/python -m stillhouse.shapes.train.ship --trained build/shapes
	$(BIN)/python -m benchmarks.judge
	$(BIN)/python -m benchmarks.tables

students: .venv/full.stamp ## distil the embedded model to 3 steps and to 1, and evaluate both against it; hours
	$(BIN)/stillhouse distill shapes -o build/students/chain-3 --work build/students/work --force \
		--config src/stillhouse/shapes/train/students.toml
	$(BIN)/stillhouse distill shapes -o build/students/trajectories-3 --work build/students/trajectories --force \
		--config src/stillhouse/shapes/train/trajectories.toml --init-from build/students/chain-3
	$(BIN)/stillhouse distill shapes -o build/students/finetuned-3 --work build/students/finetune --force \
		--config src/stillhouse/shapes/train/finetune.toml --init-from build/students/trajectories-3
	$(BIN)/stillhouse distill shapes -o build/students/shapes-3 --work build/students/fresh --force \
		--config src/stillhouse/shapes/train/finetune.toml --init-from build/students/finetuned-3 --seed 2
	$(BIN)/stillhouse distill shapes -o build/students/shapes-1 --work build/students/finetune --force \
		--config src/stillhouse/shapes/train/one_step.toml --init-from build/students/trajectories-3
	$(BIN)/python -m stillhouse.shapes.train.ship --student build/students/shapes-3 \
		--student build/students/shapes-1
	$(BIN)/python -m benchmarks.judge
	$(BIN)/python -m benchmarks.distill shapes-3 shapes-1
	$(BIN)/python -m benchmarks.cost shapes
	$(BIN)/python -m benchmarks.tables

protocol: .venv/full.stamp ## make the messages of gRPC and of ONNX from their .proto
	$(BIN)/python -m grpc_tools.protoc -I src/stillhouse/serve/api/grpc \
		--descriptor_set_out=src/stillhouse/serve/api/grpc/inference.binpb \
		--pyi_out=src/stillhouse/serve/api/grpc inference.proto
	$(BIN)/python -m grpc_tools.protoc -I src/stillhouse/backends \
		--descriptor_set_out=src/stillhouse/backends/onnx.binpb --pyi_out=src/stillhouse/backends onnx.proto

constraints: .venv/full.stamp ## pin what is installed now
	$(BIN)/python -m pip freeze --all --exclude-editable --exclude pip | sed 's/+cpu$$//' > constraints.txt

clean: ## remove what this file has built; what the server stored in stillhouse-data stays
	rm -rf .venv build dist src/*.egg-info demo.png .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Stillhouse needs Python 3.11 or later")'
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

.venv/core.stamp: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the core (no torch) into .venv ..."
	$(INSTALL) --editable .
	@touch $@

# torch goes first and by itself, so that nothing else gets to choose its build.
.venv/full.stamp: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing torch and the development tools into .venv ..."
	$(INSTALL) $(TORCH)
	$(INSTALL) --editable '.[train,accelerate,telemetry,dev]'
	@touch .venv/core.stamp $@
