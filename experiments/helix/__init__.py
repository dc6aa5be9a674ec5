"""Experiment `helix`: flow through layers, and what the layouts serve."""
