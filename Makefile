# Everything a person needs: `make demo` and `make test`. Both make .venv when it is missing or out of date.

PYTHON ?= python3
BIN := $(if $(filter Windows_NT,$(OS)),.venv/Scripts,.venv/bin)
STAMP := .venv/.installed

.PHONY: demo test docs pictures dist test-avx2 test-sse41 test-cluster test-wheel test-extras torture mutation locks licenses audit sbom check bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    train and test on Fashion-MNIST against MNIST (minutes; make demo QUICK=1 is quicker)"
	@echo "make test    lint, types and tests (make test PYTHON=python3.12 for another interpreter, after make clean)"
	@echo "make test-avx2, make test-sse41   the numerical tests as on an older processor, by one thread and by two"
	@echo "make test-cluster   jobs on a Ray cluster that loses nodes (minutes)"
	@echo "make test-wheel      the wheel, installed without extras in an environment of its own (a minute)"
	@echo "make test-extras     the wheel with each extra alone (some ten minutes; EXTRAS=heif,onnx for some)"
	@echo "make docs    the documentation as a site, in build/docs; warnings are errors"
	@echo "make pictures   train what the pictures of the README and of docs/idea.md show, and draw them (some 10 minutes of one core)"
	@echo "make dist    wheel and source distribution, checked, in dist"
	@echo "make bench   measure speed beside peers and the machine's own limit (some 35 minutes, idle machine)"
	@echo "make test-interop    the adapter for pytorch-ood against the real package, with a torch and torchvision of its own"
	@echo "make torture  what is promised, tried by force: kills, full disks, damaged input, ... (under an hour)"
	@echo "make mutation mutants of the package, drawn at random, that the tests must notice (an hour)"
	@echo "make locks    requirements with hashes; make licenses, make audit, make sbom: what is installed, and its faults"
	@echo "make clean   remove .venv and caches"

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check torch
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--editable '.[heif,onnx,pyod,ray,serve,tiff,watch]' crepes mapie hypothesis pytest pytest-timeout pytest-xdist ruff mypy \
		import-linter pydoclint jaxtyping beartype pre-commit types-PyYAML playwright schemathesis 'tritonclient[http]' \
		sybil sphinx furo myst-parser array-api-strict polars
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/negvae demo $(if $(QUICK),--quick)

# The code whose docstrings pydoclint checks.
DOCUMENTED := src/negvae benchmarks/bench

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pydoclint --quiet $(DOCUMENTED)

NODE_PACKAGES := axe-core@4.14.1 onnxruntime-node@1.30.0 onnxruntime-web@1.30.0 dockerfile-utils@0.16.3

# One thread in each of two processes: threads of two processes that share two cores slow one another.
# A process of the tests that crashes is not replaced: with files as units, pytest-xdist may wait for ever after that.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --max-worker-restart 0

test: $(STAMP) .node/.installed .pytorch-ood/.installed check
	OMP_NUM_THREADS=1 $(PYTEST)

# What the tests of the service's page and of the exported file elsewhere take from npm, where there is npm; without
# install scripts, which would fetch more.
.node/.installed:
	mkdir -p .node
	if command -v npm > /dev/null; then npm install --prefix .node --ignore-scripts --no-audit --no-fund --silent \
		$(NODE_PACKAGES); fi
	touch $@

# The files of pytorch-ood, for its modules that need no torchvision; outside of .venv, where it would be incomplete.
.pytorch-ood/.installed: | $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .pytorch-ood \
		pytorch-ood==0.4.0
	touch $@

# What computes, with torch and oneDNN held to the instructions of older processors, by one thread and by two, or as
# THREADS says; threads that wait asleep leave their cores to those of the other process.
NUMERICAL := tests/model tests/fast tests/negatives tests/training tests/scoring tests/detector tests/records \
	tests/test_device.py tests/runs/test_export.py
avx2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2
sse41 := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41

THREADS := 1 2

test-avx2 test-sse41: test-%: $(STAMP)
	set -e; for threads in $(THREADS); do \
		$($*) OMP_NUM_THREADS=$$threads OMP_WAIT_POLICY=passive $(PYTEST) $(NUMERICAL); done

# Nodes and drivers of a Ray cluster on this machine are killed in the middle of their jobs.
test-cluster: $(STAMP)
	$(BIN)/pytest -m cluster -v --durations=0 tests/cluster

# The wheel, built and installed without extras into an environment of its own.
test-wheel: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m wheel tests/test_wheel.py

# The wheel with each extra alone, each in an environment of its own, which does what the extra is for.
test-extras: $(STAMP)
	OMP_NUM_THREADS=1 NEGVAE_EXTRAS=$(EXTRAS) $(BIN)/pytest -m extras -v -rP tests/test_extras.py

# The documentation; a link that leads nowhere is a warning, and warnings are errors.
docs: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs
	@echo "build/docs/index.html"

# Needs Fashion-MNIST and MNIST, which are fetched; writes docs/pictures and benchmarks/results/pictures.json.
pictures: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.pictures measure
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.pictures draw

dist: .venv-tools/.installed
	rm -rf dist
	.venv-tools/bin/python -m build --outdir dist .
	.venv-tools/bin/twine check --strict dist/*

# What is promised, tried by force; the counts are printed, and those of all parts are kept. A run that was stopped goes
# on. Parts may be named: make torture PARTS="kills disks". SHARE=0.1 makes a tenth of the trials, and a later run with
# a larger share goes on from there.
torture: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check atheris==3.0.0 || true
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.torture $(if $(SHARE),--share $(SHARE)) \
		$(if $(PARTS),$(PARTS),--out benchmarks/results/torture.json)

# Mutants of what computes, drawn at random by cosmic-ray, that the tests must notice, or that are explained. A run that
# was stopped goes on; AGAIN=1 tries those once more that survived. Those that are named: make torture PARTS=mutants.
mutation: $(STAMP) .venv-tools/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check coverage==7.17.5
	.venv-tools/bin/python benchmarks/mutation/draw.py --number $(or $(NUMBER),300) --out runs/mutants.json
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.mutation $(if $(AGAIN),--again) --out benchmarks/results/mutation.json

# Tools that look at what is installed, in an environment of their own.
.venv-tools/.installed: benchmarks/tools.txt
	test -x .venv-tools/bin/python || $(PYTHON) -m venv .venv-tools
	.venv-tools/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

# Every package that `make` installs, with the hashes of its files: pip install --require-hashes -r requirements.lock
locks: .venv-tools/.installed
	.venv-tools/bin/uv pip compile pyproject.toml benchmarks/develop.txt --extra heif --extra onnx --extra pyod --extra ray --extra serve \
		--extra tiff --extra watch --constraint constraints.txt --generate-hashes --no-header --quiet --output-file requirements.lock

licenses: $(STAMP) .venv-tools/.installed
	.venv-tools/bin/pip-licenses --python $(BIN)/python --order license --format markdown

# Code 0: no vulnerability is known; 1: some are; 2: it could not run; 3: the index of advisories was not
# reached, and nothing is known.
audit: $(STAMP) .venv-tools/.installed
	.venv-tools/bin/python benchmarks/audit.py $$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")

sbom: $(STAMP) .venv-tools/.installed
	.venv-tools/bin/cyclonedx-py environment $(BIN)/python --of JSON --output-file sbom.json

# The peers' environments: torch is pinned as ours, and neither peer asks for torchvision.
.venv-%/.installed: benchmarks/%.txt
	test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

bench: $(STAMP) .venv-pythae/.installed .venv-pyod/.installed
	$(BIN)/python -m benchmarks.bench --pythae .venv-pythae/bin/python --pyod .venv-pyod/bin/python \
		$(if $(QUICK),--quick,--out benchmarks/results --table docs/benchmarks.md)
	$(if $(QUICK),,$(BIN)/python -m benchmarks.scale)
	$(if $(QUICK),,$(BIN)/python -m benchmarks.workers --out benchmarks/results/workers.json)
	$(if $(QUICK),,OMP_NUM_THREADS=2 $(BIN)/python -m benchmarks.same_result)
	$(if $(QUICK),,$(BIN)/python -m benchmarks.demo_time)

# pytorch-ood imports torchvision, which has no build that matches ours: an environment of its own, of some 5.5 GB.
.venv-interop/.installed: pyproject.toml
	test -x .venv-interop/bin/python || $(PYTHON) -m venv .venv-interop
	.venv-interop/bin/python -m pip install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1 \
		pytorch-ood==0.4.0 --editable . pytest pytest-timeout
	touch $@

test-interop: .venv-interop/.installed
	.venv-interop/bin/python -m pytest tests/detector/test_pytorch_ood.py

# The demo's picture in docs/reproduction.md: the top of the report that the last `make demo` wrote.
docs/demo.png: runs/demo/report.html
	chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking \
		--disable-component-update --disable-sync --user-data-dir=$$(mktemp -d) --window-size=1230,1000 \
		--screenshot=$@ file://$(CURDIR)/$<

clean:
	rm -rf .node .pytorch-ood .venv .venv-tools .venv-pythae .venv-pyod .venv-interop .mypy_cache .ruff_cache \
		.pytest_cache .hypothesis .import_linter_cache build dist
