# `make demo` and `make test` need Python 3.10 or newer and set up all the rest in this folder.

PYTHON ?= python3
VENV := .venv
VENV_OLDEST := .venv-oldest
MODEL := models/SmolLM2-135M-Instruct
TURNS ?= 16
PARALLEL ?= -n 2

INSTALL := -m pip install --quiet --constraint constraints.txt

.PHONY: demo test test-architectures test-oldest style clean

# A chat of many turns on a real model, with a window so small that the stream passes it several times.
demo: $(VENV)/.demo $(MODEL)
	$(VENV)/bin/python demo/streaming.py --model_name_or_path $(MODEL) \
		--window_size 256 --max_new_tokens 100 --num_turns $(TURNS)

# All tests but those of architectures beyond the first package's; the real model's are included.
test: $(VENV)/.dev $(MODEL)
	$(VENV)/bin/python -m pytest tests $(PARALLEL) -m "not every_architecture"

# Every architecture through the same checks; the summary says what each tiny model has.
test-architectures: $(VENV)/.dev
	$(VENV)/bin/python -m pytest tests $(PARALLEL) -m every_architecture

# The tests that need no real model, with the oldest supported Transformers.
test-oldest: $(VENV_OLDEST)/.test
	$(VENV_OLDEST)/bin/python -m pytest tests $(PARALLEL) -m "not real_model and not every_architecture"

style: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# Logs and benchmark results stay.
clean:
	rm -rf $(VENV) $(VENV_OLDEST) $(MODEL) build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Order-only: the model is made once and stays whatever else changes.
$(MODEL): | $(VENV)/.demo
	$(VENV)/bin/python demo/fetch_model.py

$(VENV)/.demo $(VENV)/.dev: $(VENV)/.%: pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (a minute or two the first time) ..."
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(INSTALL) --editable ".[$*]"
	touch $@

$(VENV_OLDEST)/.test: pyproject.toml constraints.txt
	@echo "Installing into $(VENV_OLDEST) (a minute or two the first time) ..."
	$(PYTHON) -m venv $(VENV_OLDEST)
	$(VENV_OLDEST)/bin/python $(INSTALL) --editable ".[test]" "transformers==5.17.*"
	touch $@
