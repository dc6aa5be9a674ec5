"""Experiments as data, the runner `python -m experiments.sweep`, and figures."""
