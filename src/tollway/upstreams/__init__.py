"""Servers that run models, and how to talk to them."""
