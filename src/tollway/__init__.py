"""Tollway: metered access to language models, through one OpenAI-compatible door."""

__version__ = "0.1.0"
