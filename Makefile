# The two commands a newcomer needs: `make demo` and `make test`. The rest is for developers.
# Everything happens in .venv; nothing is installed outside this directory.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
HOT    := $(wildcard src/pgwire/hot/*.pyx src/pgwire/hot/*.px[di] src/pgwire/hot/*.h)
PROTOS := $(wildcard protos/pgleash/v1/*.proto)

.PHONY: demo test drivers lint types arch bench fuzz fuzz-parsers fuzz-long sanitize load proto proto-check clean

demo: $(READY)
	@$(BIN)/python -m pgleash.demo.story

test: $(READY)
	$(BIN)/python -m pytest -q $(ARGS)

# One stamp for "the environment is there and the extensions are built": rebuilt when their sources or the metadata change.
$(READY): pyproject.toml setup.py $(HOT)
	@test -n "$(PYTHON)" || { echo "pgleash needs Python 3.11 or newer" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "pgleash needs Python 3.11 or newer; $(PYTHON) is older" >&2; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@echo "installing pgleash and its tools into $(VENV) (a minute or two the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,demo]'
	@touch $@

lint: $(READY)
	$(BIN)/ruff check src tests loadtests protos
	$(BIN)/ruff format --check --quiet src tests loadtests protos

types: $(READY)
	$(BIN)/mypy

arch: $(READY)
	$(BIN)/python -m pytest -q tests/architecture

# What it costs beside PgBouncer and a direct connection; prints tables, writes loadtests/results.json and docs/performance.md.
bench: $(READY)
	$(BIN)/python -m loadtests.bench $(ARGS)

# Every driver that PyPI, Debian and npm have, with and without the gateway; writes the table in docs/compatibility.md.
# As root it installs the Debian packages; npm's go into .venv. What can't be installed is skipped and says so.
drivers: $(READY)
	@sh tests/drivers/install.sh $(VENV)/npm
	DRIVERS_TABLE=docs/compatibility.md $(BIN)/python -m pytest -q tests/drivers $(ARGS)

# Spoiled sessions to PostgreSQL and to the gateway: ARGS="--seed N --cases M --seconds S", with --masked for masked values.
fuzz: $(READY)
	PYTHONPATH=tests $(BIN)/python -m fuzz.differential $(ARGS)

# The parsers alone, guided by coverage: ARGS="--seconds S".
fuzz-parsers: $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check atheris || echo "atheris can't be installed here"
	PYTHONPATH=tests $(BIN)/python -m fuzz.parsers $(ARGS)

# Everything that is random, for much longer.
fuzz-long: $(READY)
	HYPOTHESIS_PROFILE=long $(BIN)/python -m pytest -q --timeout 7200 tests/pgwire tests/control tests/fuzz tests/walks/test_walk_splits.py $(ARGS)

# The tests of the wire on extensions with bounds checks and gcc's sanitizers: RUN="-m fuzz.differential" for another command.
RUN ?= -m pytest -q -p no:cacheprovider tests/pgwire tests/walks/test_walk_pipeline.py
sanitize: $(READY)
	PGLEASH_DEBUG=1 $(BIN)/python setup.py --quiet build_ext --build-lib build/sanitized --build-temp build/sanitized-objects
	cp -r src/control src/pgleash build/sanitized/
	cd src && find pgwire -name '*.py' -exec cp --parents {} ../build/sanitized/ ';'
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" PYTHONPATH=build/sanitized:tests \
	    ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 $(BIN)/python $(RUN)

# A minute of 200 agents over PostgreSQL and 20 approval bots over gRPC, against the demo stack; writes loadtests/storm.json.
load: $(READY)
	$(BIN)/python -m loadtests.load $(ARGS)

proto: $(READY)
	$(BIN)/python protos/generate.py

proto-check: $(READY)
	$(BIN)/python protos/generate.py --check

clean:
	rm -rf build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f src/pgwire/hot/*.c src/pgwire/hot/*.html src/pgwire/hot/*.so $(READY)
