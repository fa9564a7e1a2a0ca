"""What else there is to run a one-step student on a CPU, beside kdgen, in one run.

python -m benchmarks.cpu_peers               # measure; writes benchmarks/results/peers/
python -m benchmarks.cpu_peers.report        # the table and the picture in docs/performance.md
python -m benchmarks.cpu_peers.again A B     # does a second run say the same?
python -m benchmarks.cpu_peers.gate          # a few engine layers against torch, for CI
"""
