"""Everything one GPU can tell, in one command: `make gpu`.

    python -m benchmarks.gpu [--minutes 27] [--stages kernels,images] [--out benchmarks/results]

Each stage is a process of its own with a deadline, and writes every figure as soon as it has it, so
that whatever stops the run leaves the figures measured until then. Without a GPU the command says
what it would do, and `--rehearse` runs the same code on the CPU with tiny inputs, keeping nothing.
"""
