# `make demo` and `make test` need Python 3.10 or newer and set up all the rest in this folder. `make help` lists all targets.

PYTHON ?= python3
VENV := .venv
VENV_OLDEST := .venv-oldest
VENV_NEWEST := .venv-newest
VENV_LOCK := .venv-lock
MODEL := models/SmolLM2-135M-Instruct
TURNS ?= 16
PARALLEL ?= -n 2

PIP := -m pip install --quiet --disable-pip-version-check
INSTALL := $(PIP) --constraint constraints.txt
# No environment moves torch: the locked release may be at hand as a CPU build, another one may bring gigabytes of CUDA.
TORCH := $(shell grep '^torch==' constraints.txt)
# pip chooses in this order, so that Transformers is the newest and the others are the newest that it can use.
NEWEST := transformers accelerate tokenizers huggingface_hub peft
EACH_RELEASE := -m "each_release and not real_model and not every_architecture"

.PHONY: demo serve image test test-architectures test-oldest test-newest environments env-newest lock style docs help clean

# Where several workers share the cores, threads that spin while they wait hold each other up: on two busy cores, the
# real model takes about four times as many steps a second without.
test test-architectures test-oldest test-newest: export OMP_WAIT_POLICY := passive

# A chat of many turns on a real model, with a window so small that the stream passes it several times.
demo: $(VENV)/.demo $(MODEL) ## hold a long conversation with a small real model in a short window
	$(VENV)/bin/python demo/streaming.py --model_name_or_path $(MODEL) \
		--window_size 256 --max_new_tokens 100 --num_turns $(TURNS)

# A server for clients of OpenAI's API on http://127.0.0.1:8000, until Ctrl-C. OPTIONS are those of `attention-sinks serve`.
serve: $(VENV)/.serve $(MODEL) ## serve a small real model to clients of OpenAI's API
	$(VENV)/bin/attention-sinks serve $(MODEL) $(OPTIONS)

# All tests but those of architectures beyond the first package's; the real model's are included.
test: $(VENV)/.dev $(MODEL) ## run the tests, those of the real model included
	@$(VENV)/bin/python .ci/versions.py
	$(VENV)/bin/python -m pytest tests $(PARALLEL) -m "not every_architecture"

# Every architecture through the same checks; the summary says what each tiny model has.
test-architectures: $(VENV)/.dev ## run the checks of every architecture
	@$(VENV)/bin/python .ci/versions.py
	$(VENV)/bin/python -m pytest tests $(PARALLEL) -m every_architecture

# The tests that a release of Transformers is likely to break, with the oldest supported one. The workflow on GitHub runs
# all of them with it, on three systems.
test-oldest: $(VENV_OLDEST)/.test ## run the tests that a release is likely to break, with the oldest supported Transformers
	@$(VENV_OLDEST)/bin/python .ci/versions.py
	$(VENV_OLDEST)/bin/python -m pytest tests $(PARALLEL) $(EACH_RELEASE)

# The same with the newest one that the registry has today.
test-newest: env-newest ## run the tests that a release is likely to break, with the newest Transformers
	@$(VENV_NEWEST)/bin/python .ci/versions.py
	$(VENV_NEWEST)/bin/python -m pytest tests $(PARALLEL) $(EACH_RELEASE)

# All that the tests need. `make --jobs=3 environments` installs them side by side.
environments: $(VENV)/.dev $(VENV_OLDEST)/.test env-newest ## install all that the tests need

# Phony, so that every run asks the registry; it costs seconds where nothing is new.
env-newest: $(VENV_NEWEST)/.test ## bring the environment of test-newest up to date
	$(VENV_NEWEST)/bin/python $(PIP) --upgrade --editable ".[test]" $(NEWEST) "$(TORCH)"

# Writes constraints.txt anew, with the newest release of everything but torch. To move torch, change its line first.
# The comment at the top stays. Where a package has a line for older Pythons, the one for newer Pythons comes first.
# When no set of releases fits together, the file stays as it was.
lock: $(VENV_LOCK)/bin/uv ## write constraints.txt anew, with the newest releases
	echo "$(TORCH)" > $(VENV_LOCK)/torch.txt
	$(VENV_LOCK)/bin/uv pip compile pyproject.toml --all-extras --universal --python-version 3.10 --no-python-downloads \
		--upgrade --constraint $(VENV_LOCK)/torch.txt --no-annotate --no-header --quiet --output-file $(VENV_LOCK)/locked.txt
	(grep '^#' constraints.txt; LC_ALL=C sort -t= -k1,1 -k3r $(VENV_LOCK)/locked.txt) > $(VENV_LOCK)/constraints.txt
	mv $(VENV_LOCK)/constraints.txt constraints.txt

# Ruff checks style and format, import-linter the direction of imports, mypy and pyright the types, hadolint the image.
style: $(VENV)/.dev ## check style, direction of imports, types and the Dockerfile
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/mypy
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python
	$(VENV)/bin/hadolint Dockerfile

# Needs Docker, and a network: the base image and all packages come from there.
image: ## build an image of the server with Docker
	docker build --tag attention-sinks .

# The site lies in site/ afterwards. Building it needs no network.
docs: $(VENV)/.dev ## build the documentation, with any dead link an error
	$(VENV)/bin/python -m mkdocs build --strict

# Each target's line is what stands behind `##` beside it.
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-20s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# Logs and benchmark results stay.
clean: ## remove environments, the model, caches and builds; results stay
	rm -rf $(VENV) $(VENV_OLDEST) $(VENV_NEWEST) $(VENV_LOCK) $(MODEL) build dist site .pytest_cache .ruff_cache \
		.mypy_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Order-only: the model is made once and stays whatever else changes.
$(MODEL): | $(VENV)/.demo
	$(VENV)/bin/python demo/fetch_model.py

$(VENV)/.demo $(VENV)/.dev $(VENV)/.serve: $(VENV)/.%: pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (a minute or two the first time) ..."
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(INSTALL) --editable ".[$*]"
	touch $@

# The oldest and the newest set start from the lock, so that they differ from it only in what they are about.
$(VENV_OLDEST)/.test: pyproject.toml constraints.txt
	@echo "Installing into $(VENV_OLDEST) (a minute or two the first time) ..."
	$(PYTHON) -m venv $(VENV_OLDEST)
	$(VENV_OLDEST)/bin/python $(INSTALL) --editable ".[test]"
	$(VENV_OLDEST)/bin/python $(PIP) --editable ".[test]" "transformers==5.17.*" "$(TORCH)"
	touch $@

$(VENV_NEWEST)/.test: pyproject.toml constraints.txt
	@echo "Installing into $(VENV_NEWEST) (a minute or two the first time) ..."
	$(PYTHON) -m venv $(VENV_NEWEST)
	$(VENV_NEWEST)/bin/python $(INSTALL) --editable ".[test]"
	touch $@

$(VENV_LOCK)/bin/uv:
	$(PYTHON) -m venv $(VENV_LOCK)
	$(VENV_LOCK)/bin/python $(PIP) uv
