"""Kernels compiled for a GPU that is not there, and what the result must look like.

`cases/<op>.py` holds the calls of one op: a function `cases()` that yields `Case`. A new file is
found by itself. `tools/aot_check.py` compiles them all.
"""
