# Each target makes $(VENV) ready first (tools/setup); the second time that costs nothing.
#   PYTHON=  the interpreter to make it with        VENV=  where            ARGS=  passed on
#   WORKERS= processes that share the tests (auto: one a core; 0: this one)
VENV   ?= .venv
PYTHON ?=
WORKERS ?= auto
export VENV PYTHON

RUN   := $(VENV)/bin/python
SETUP := @bash tools/setup
# One memory state for all timings: large blocks stay in the heap instead of being mapped anew.
STILL := MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296

.DEFAULT_GOAL := help
.PHONY: help demo test bench bench-smoke bench-peers bench-gate gpu lint sanitize gates clean

help: ## this list
	@sed -n 's/^\([a-z-]*\): ##/  make \1\t/p' Makefile | expand -t 20

demo: ## train a teacher on handwritten digits, distil it, write runs/demo/report.html
	$(SETUP)
	@$(RUN) -m kdgen.demo $(ARGS)

test: ## all tests
	$(SETUP) test triton
	@$(RUN) -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

bench: ## time every op, network and training step; compare with benchmarks/results
	$(SETUP) test bench
	@$(STILL) $(RUN) -m pytest benchmarks --benchmark-quiet \
	  --benchmark-json=.bench.json --results=runs/bench $(ARGS)
	@$(RUN) -m benchmarks.gate benchmarks/results runs/bench

bench-smoke: ## run every benchmark once, untimed
	$(SETUP) test bench
	@$(RUN) -m pytest benchmarks --benchmark-disable $(ARGS)

bench-peers: ## time torch, ONNX Runtime, OpenVINO, diffusers and kdgen in turns; on a CPU, an hour
	$(SETUP) test bench peers
	@$(RUN) -m benchmarks.cpu_peers $(ARGS)

bench-gate: ## a few engine layers against torch: is a ratio below its floor?
	$(SETUP) test bench
	@$(STILL) $(RUN) -m benchmarks.cpu_peers.gate $(ARGS)

gpu: ## on a GPU: tests, kernels, 50,000 images, training, profile; elsewhere: what it would do
	$(SETUP) test bench triton --spare
	@$(RUN) -m benchmarks.gpu $(ARGS)

lint: ## ruff, clang-format, mypy
	$(SETUP) test dev
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@PATH="$(VENV)/bin:$$PATH" clang-format --dry-run -Werror csrc/*.cpp csrc/*.h csrc/engine/* csrc/cuda/* tests/emulation/*.h tests/sanitize/*.cpp tests/sanitize/*.h
	@$(RUN) -m mypy

sanitize: ## csrc under the address and undefined-behaviour sanitizers, against loops in double
	$(SETUP)
	@PATH="$(VENV)/bin:$$PATH" cmake -S tests/sanitize -B build/sanitize >build/sanitize.log
	@PATH="$(VENV)/bin:$$PATH" cmake --build build/sanitize --parallel >>build/sanitize.log
	@build/sanitize/sanitize $(ARGS)

gates: ## compile every Triton kernel ahead of time, read the CUDA ones; fail on register spills
	$(SETUP) triton
	@env -u TRITON_INTERPRET $(RUN) tools/aot_check.py
	@$(RUN) -m tools.cuda_check

clean: ## remove everything that was built, the environment too
	rm -rf build dist $(VENV) .bench.json .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
