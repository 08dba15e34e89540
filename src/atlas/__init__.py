"""Convergence Atlas: re-run what papers claim about convergence and publish a verdict for every claim."""

__version__ = "0.1.0"
