"""Tollway: metered access to language models, behind one OpenAI-compatible API."""

__version__ = "0.1.0"
