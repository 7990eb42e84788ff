# `make demo` runs the main job, `make test` the tests; both make .venv first.
PYTHON ?= python3
BIN := .venv/bin
ROOMS := configs data models cluster train

# `demo` is a folder too.
.PHONY: demo test test-all bench gpu lint clean

demo: .venv/installed demo/train/manyfaces.json demo/pairs.bin
	$(BIN)/manyfaces train configs/demo.yaml

demo/train/manyfaces.json: | .venv/installed
	$(BIN)/manyfaces data synth demo/train --identities 600 --images 12 --seed 1

# Identities that are not trained on: the same generator, another seed.
demo/heldout/manyfaces.json: | .venv/installed
	$(BIN)/manyfaces data synth demo/heldout --identities 300 --images 6 --seed 2

demo/pairs.bin: demo/heldout/manyfaces.json
	$(BIN)/manyfaces data pairs demo/heldout $@ --count 2000

# Two processes, each with whole files of tests, in their order: the longest come first.
PYTEST := $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 10

test: lint
	$(PYTEST)

# Slow tests start Ray clusters, of which a machine bears one at a time.
test-all: test
	$(BIN)/pytest -m slow --durations 10

bench: .venv/installed demo/train/manyfaces.json
	$(BIN)/python tests/bench/bench_job.py configs/demo.yaml

# On a machine with a GPU, within ten minutes. It installs nothing: without .venv it takes the python3 that install.sh of
# `manyfaces manifest wheels` has filled. `make gpu GPU=--cpu` tries it on any machine.
gpu:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) tests/bench/bench_gpu.py $(GPU)

# Benchmarks and the GPU's tests are run by hand: mypy sees where they have fallen behind.
# mypy and import-linter cannot follow an editable install that maps folders: they see the rooms under build/typed/manyfaces.
lint: .venv/installed
	mkdir -p build/typed/manyfaces
	for room in $(ROOMS); do ln -sfn ../../../$$room build/typed/manyfaces/$$room; done
	$(BIN)/ruff check --output-format concise .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/mypy tests/bench tests/gpu
	PYTHONPATH=build/typed $(BIN)/lint-imports --no-logo || (echo "imports run one way: train -> cluster | data | models -> configs"; exit 1)

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf build .venv *.egg-info
