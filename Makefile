# make run: serve on port 2069.  make test: all tests.  make check: what CI runs.  make bench: figures.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OVER_SOCKETS := $(addprefix tests/test_, $(addsuffix .py, asfpy backlog command_line crash handover limits \
	publish quick slow_readers stream tls))
WEBHOOKS := .demo/node_modules/@octokit/webhooks-examples

.PHONY: run test test-asyncio lint check demo bench clean

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

# what talks to the daemon over sockets, once more with the other event loop
test-asyncio: $(VENV)/test
	PYPUBSUB_LOOP=asyncio $(BIN)/python -m pytest $(OVER_SOCKETS)

check: lint test test-asyncio

demo: $(VENV)/run $(WEBHOOKS)/package.json
	$(BIN)/python clients/python/demo.py $(WEBHOOKS)

bench: $(VENV)/test
	$(BIN)/python tests/bench $(BENCH)

clean:
	rm -rf $(VENV) .demo

$(VENV)/run: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/test: $(VENV)/run tests/requirements.txt
	$(BIN)/pip install -q --disable-pip-version-check -r tests/requirements.txt
	touch $@

$(WEBHOOKS)/package.json:
	npm install --silent --no-save --no-package-lock --prefix .demo @octokit/webhooks-examples@7.6.1
