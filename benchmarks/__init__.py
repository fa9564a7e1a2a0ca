"""Measured figures beside what arithmetic and memory allow; `README.md` says how to read them."""
