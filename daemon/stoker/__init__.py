"""Stoker: a private AI that runs on its user's own machine."""

__all__ = ["__version__"]
__version__ = "0.1.0"
