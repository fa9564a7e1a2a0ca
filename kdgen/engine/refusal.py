"""What the engine says of what it cannot take."""

from __future__ import annotations


class Refused(ValueError):
    """A network that torch has to run."""
