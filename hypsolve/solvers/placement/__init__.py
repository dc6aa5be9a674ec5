"""Placement methods: which machines form which pipelines."""
