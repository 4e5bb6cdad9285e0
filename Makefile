# `make demo` and `make test` do everything on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
SETUP = pyproject.toml setup.py constraints.txt runtime/noise/_noise.c
DEMO ?= sdexport-demo
BENCH ?= .bench

.PHONY: demo serve test test-slow test-ray test-interop fuzz fuzz-server fuzz-nightly perf lint docs demo-package dist bench bench-quick release clean

demo: $(VENV)/demo
	$(BIN)/sdexport demo $(DEMO) --from-checkpoint --force

# The image server with the demo model, on http://127.0.0.1:8000.
serve: $(VENV)/serve
	$(BIN)/sdexport serve demo=sdexport/demo_model/package $(ARGS)

test: $(VENV)/test
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/test
	$(BIN)/python -m pytest -m 'slow or fuzz'

# The server on Ray Serve, on two processors; Ray has 500 MB.
test-ray: $(VENV)/ray
	$(BIN)/python -m pytest -m 'slow or not slow' tests/sdexport/server/test_ray.py tests/test_deploy.py

# Our packages in Optimum and its folders here, compared; makes .venv-interop, which needs PyPI.
test-interop: $(VENV)/test
	$(BIN)/python -m tests.interop.run --venv .venv-interop

# Hostile inputs, guided by coverage; needs Atheris, which is for Linux and Python up to 3.13.
# `make fuzz ARGS="--seconds 600 tokenizer"` runs one target for ten minutes.
fuzz: $(VENV)/fuzz
	$(BIN)/python -m tests.fuzz.run --json .fuzz/report.json $(ARGS)

# Hostile requests to the server: 100,000 of our own, and those of schemathesis; ten minutes.
fuzz-server: $(VENV)/test
	$(BIN)/python -m pytest -q -m fuzz tests/sdexport/server

fuzz-nightly: $(VENV)/fuzz
	$(BIN)/python -m tests.fuzz.run --seconds 480 --jobs 4 --json .fuzz/report.json

# Performance ratios, on a machine that does nothing else.
perf: $(VENV)/test
	$(BIN)/python -m pytest -m perf

lint: $(VENV)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The package of the demo model that wheels hold; its files name the version. Its adapters are
# written by their training: sdexport.demo_model.outline_controlnet and style_lora.
demo-package: $(VENV)/demo
	$(BIN)/sdexport export sdexport/demo_model/model sdexport/demo_model/package --precision fp16 --lora-inputs --controlnet-inputs --force

# The sdist, and the wheel that is built from it, in dist/.
dist: $(VENV)/lint
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

# Compared with other programs, on a machine that does nothing else; `make bench ARGS=--plan`
# says how long it takes.
bench: $(VENV)/bench
	$(BIN)/python -m benchmarks.standard --work $(BENCH) $(ARGS)
	$(BIN)/python -m benchmarks.docs_tables
	$(BIN)/python -m benchmarks.plots

bench-quick: $(VENV)/test
	$(BIN)/python -m benchmarks.quick

# make release VERSION=0.2.0: version, changelog, commit and tag; pushes nothing.
release: $(VENV)/demo
	$(BIN)/python scripts/release.py "$(VERSION)"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo: $(SETUP) | $(BIN)/python
	$(PIP) --editable ".[cpu,export]"
	touch $@

$(VENV)/serve: $(SETUP) | $(BIN)/python
	$(PIP) --editable ".[cpu,serve]"
	touch $@

# Without their dependencies: tests load k-diffusion's samplers and Triton's protobuf alone.
$(VENV)/test: $(SETUP) | $(BIN)/python
	$(PIP) --editable ".[cpu,openvino,tensorrt-rtx,export,test]"
	$(PIP) --no-deps k-diffusion tritonclient
	-$(BIN)/python -m tests.helpers.software_gpu
	touch $@

$(VENV)/ray: $(SETUP) | $(BIN)/python
	$(PIP) --editable ".[cpu,openvino,tensorrt-rtx,export,test,ray]"
	touch $@

$(VENV)/fuzz: $(SETUP) | $(BIN)/python
	$(PIP) --editable ".[cpu,openvino,tensorrt-rtx,export,test,fuzz]"
	touch $@

$(VENV)/lint: $(SETUP) | $(BIN)/python
	$(PIP) --editable ".[cpu,openvino,tensorrt-rtx,export,test,dev]"
	touch $@

$(VENV)/docs: $(SETUP) | $(BIN)/python
	$(PIP) --editable ".[docs]"
	touch $@

$(VENV)/bench: $(SETUP) | $(BIN)/python
	$(PIP) --editable ".[cpu,openvino,export,bench]"
	touch $@

clean:
	rm -rf $(VENV) .venv-interop .fuzz $(DEMO) $(BENCH) build dist site *.egg-info runtime/noise/*.so runtime/noise/*.pyd .mypy_cache .ruff_cache .pytest_cache .import_linter_cache \
		.hypothesis .coverage
