"""One script for each number we publish; README.md says how each is measured."""
