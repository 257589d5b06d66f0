# make run: serve on port 2069.  make test: all tests.  make check: what CI runs.  make bench: figures.
# make coverage: what the tests reach.
PYTHON ?= python3
NEXT_PYTHON ?= python3.13
VENV ?= .venv
BIN := $(VENV)/bin
# what talks to the daemon over sockets, and takes no long time
OVER_SOCKETS := $(addprefix tests/test_, $(addsuffix .py, backlog http_forms publish quick requests stream tls))
# what leans most on libraries: how requests, settings and TLS are read
WITH_OLDEST := $(addprefix tests/test_, $(addsuffix .py, http_forms publish requests tls))
# what leans most on the event loop
ON_LOOPS := $(addprefix tests/test_, $(addsuffix .py, quick requests stream))
# what reaches most of the code, with no test that a slower daemon would upset
COVERED := $(addprefix tests/test_, $(addsuffix .py, access acl admission ages answers attempts \
	blocks chunked client_certificates command_line connection counters cursor departed \
	directory_users fair_line fanout following heads history http_forms idempotency import_of_0_7 intake ldap \
	ldap_names limits listening log_ins plain_publish plugins private_names private_ways publish quick replay \
	requests retention rights settings_table sqs sqs_items sqs_settings stores stream tls topics wire))
UNCOVERED := $(filter-out $(COVERED), $(wildcard tests/test_*.py))
# for sed: of each requirement the oldest version that is accepted, as in make test-sockets REQUIRED='$(OLDEST)'
OLDEST := s/>=\([0-9.]*\),[^;\# ]*/==\1/
WEBHOOKS := .demo/node_modules/@octokit/webhooks-examples

.PHONY: run test test-sockets lint coverage check check-next-python demo bench clean

run: $(VENV)/run
	@echo 'In one terminal:  curl -N http://127.0.0.1:2069/fruits'
	@echo 'In another:       curl -X PUT -d '\''{"colour": "green"}'\'' http://127.0.0.1:2069/fruits/apples'
	$(BIN)/python pypubsub.py

test: $(VENV)/test
	$(BIN)/python -m pytest $(TESTS)

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# of core/, plugins/ and pypubsub.py, by tests and by the processes that they start; there is a floor
coverage: export COVERAGE_FILE := $(CURDIR)/.coverage
coverage: $(VENV)/test
	rm -f .coverage*
	COVERAGE_PROCESS_START=$(CURDIR)/pyproject.toml $(BIN)/python -m pytest --timeout 180 $(COVERED)
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

test-sockets: $(VENV)/test
	$(BIN)/python -m pytest $(OVER_SOCKETS)

# each test once; then each event loop, each Python, and of each requirement the newest version and the oldest
# that is accepted; and once with warnings as errors, and asyncio's own checks
check: check-next-python lint coverage
	$(MAKE) test TESTS='$(UNCOVERED)'
	PYPUBSUB_LOOP=asyncio $(MAKE) test VENV=$(VENV)-oldest REQUIRED='$(OLDEST)' \
		TESTS='$(WITH_OLDEST)'
	$(MAKE) test VENV=$(VENV)-next PYTHON=$(NEXT_PYTHON) TESTS='$(ON_LOOPS)'
	PYPUBSUB_LOOP=asyncio PYPUBSUB_STRICT=1 $(MAKE) test-sockets VENV=$(VENV)-next PYTHON=$(NEXT_PYTHON)

check-next-python:
	@$(NEXT_PYTHON) -c 'import venv' || \
		{ echo 'make check needs Python 3.13 as well: make check NEXT_PYTHON=/path/to/python3.13' >&2; exit 1; }

demo: $(VENV)/run $(WEBHOOKS)/package.json
	$(BIN)/python clients/python/demo.py $(WEBHOOKS)

bench: $(VENV)/test
	$(BIN)/python tests/bench $(BENCH)

clean:
	rm -rf $(VENV) $(VENV)-* .demo .coverage*

$(VENV)/run: requirements.txt
	$(PYTHON) -m venv $(VENV)
	sed '$(REQUIRED)' requirements.txt > $(VENV)/requirements.txt
	$(BIN)/pip install -q --disable-pip-version-check -r $(VENV)/requirements.txt
	touch $@

$(VENV)/test: $(VENV)/run tests/requirements.txt
	$(BIN)/pip install -q --disable-pip-version-check -r $(VENV)/requirements.txt -r tests/requirements.txt
	touch $@

$(WEBHOOKS)/package.json:
	npm install --silent --no-save --no-package-lock --prefix .demo @octokit/webhooks-examples@7.6.1
