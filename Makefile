# Everything runs in .venv, made from python3 and the package registry. `make` lists the targets; JOBS is how many processes run tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
STAMP := $(VENV)/.installed
COMMA := ,
JOBS ?= 2

.PHONY: help install install-dev demo test lint docs wheel check-all bench bench-learning asv-compare clean

help:
	@echo "make demo            install into .venv and stream real data through a Router"
	@echo "make test            lint, types, C tests, Python tests with coverage"
	@echo "make docs            the site, in build/site; a warning is an error"
	@echo "make wheel           dist/: source archive and wheel, tested from an environment of its own"
	@echo "make check-all       test, sanitizers, slow tests, proofs, FUZZ_SECONDS=600 of fuzzing a target: hours"
	@echo "make bench           kernels, ring, router: the table of the README"
	@echo "make bench-learning  regret against frozen and swept peers"
	@echo "make -C csrc install PREFIX=<directory>   libsona, the C library: docs/c.md"
	@echo "make asv-compare BASE=<revision>   fail when a benchmark is 15 % slower than BASE"

# $(1): extras. The log is shown when something fails.
install_with = $(BIN)/python -m pip install --no-build-isolation --config-settings editable_mode=compat --editable '.[$(1)]' \
	>> $(VENV)/install.log 2>&1 || (cat $(VENV)/install.log; exit 1)

$(VENV)/bin/python:
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --upgrade pip 'setuptools>=77' 'Cython>=3.1' 'numpy>=2.0' > $(VENV)/install.log 2>&1 || (cat $(VENV)/install.log; rm $@; exit 1)

$(STAMP): pyproject.toml setup.py | $(VENV)/bin/python
	@echo "installing into $(VENV)"
	@$(call install_with,plot)
	@touch $(STAMP) $(STAMP)-compiled

# With all that `install` needs: pip compiles everything each time.
$(STAMP)-dev: pyproject.toml setup.py | $(VENV)/bin/python
	@echo "installing into $(VENV), with what the tests need"
	@$(call install_with,dev)
	@touch $(STAMP) $(STAMP)-dev $(STAMP)-compiled

# pip has compiled everything when it has installed; afterwards only what has changed is compiled.
COMPILED := setup.py $(wildcard csrc/src/*.[ch] csrc/include/sona/*.h) $(shell find sona -name '*.pyx' -o -name '*.pxd')

install: $(STAMP)
	@test -e $(STAMP)-compiled && test -z "$$(find $(COMPILED) -newer $(STAMP)-compiled)" \
		|| ($(BIN)/python setup.py --quiet build_clib build_ext --inplace && touch $(STAMP)-compiled)

install-dev: $(STAMP)-dev install

demo: install
	$(BIN)/sona demo

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/cython-lint sona
	$(BIN)/clang-format --dry-run --Werror csrc/include/sona/*.h csrc/src/*.[ch] csrc/tests/*.[ch] csrc/proofs/*.[ch] csrc/proofs/*.cpp \
		csrc/examples/*.c csrc/examples/server/*.[ch]
	$(BIN)/codespell README.md CHANGELOG.md CONTRIBUTING.md docs sona csrc tests asv_benchmarks
	$(BIN)/mypy

docs: install-dev
	$(BIN)/sphinx-build -W --keep-going -q -b html docs build/site

test: lint docs
	$(MAKE) -C csrc/tests check
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --cov --cov-report=term-missing:skip-covered -m "not slow"

# From the source archive, so that nothing of this directory gets in.
wheel: install-dev
	rm -rf dist build/wheel
	$(BIN)/python -m build --no-isolation --outdir dist . > $(VENV)/wheel.log 2>&1 || (tail -n 40 $(VENV)/wheel.log; exit 1)
	$(BIN)/python -m venv build/wheel
	build/wheel/bin/python -m pip install --quiet --disable-pip-version-check dist/*.whl pytest hypothesis
	PYTHON=$(CURDIR)/build/wheel/bin/python tests/wheel.sh
	@ls -l dist

FUZZ_SECONDS ?= 600

# The slow tests run what else is in docs/proofs.md: models, other CPUs, valgrind, coverage of the C core.
# It installs torch, transformers and PEFT for the tests of what sona does beside them.
check-all: test
	@$(call install_with,models)
	$(BIN)/python -m pytest tests/test_ext_torch.py tests/test_ext_torch_forward.py
	$(MAKE) -C csrc/tests asan tsan
	$(MAKE) -C csrc/proofs fuzz FUZZ_SECONDS=$(FUZZ_SECONDS)
	for target in trajectory factors state manifest log arms npz csv; do echo $$target; done \
		| xargs -P 2 -I {} $(BIN)/python tests/fuzz.py {} --seconds $(FUZZ_SECONDS)
	tests/sanitized.sh
	SONA_ISA=scalar $(BIN)/python -m pytest -m "not slow"
	$(BIN)/python -m pytest -m slow

bench: install
	@$(call install_with,plot$(COMMA)bench)
	$(BIN)/python asv_benchmarks/table.py

bench-learning: install
	@$(call install_with,bench)
	$(BIN)/python asv_benchmarks/learning_table.py

asv-compare: install
	@$(call install_with,bench)
	cd asv_benchmarks && ../$(BIN)/asv machine --yes && ../$(BIN)/asv continuous --factor 1.15 --split $(BASE) HEAD

clean:
	rm -rf $(STAMP) $(STAMP)-dev $(STAMP)-compiled build dist *.egg-info sona/**/*.so csrc/tests/bin
