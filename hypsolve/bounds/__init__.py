"""Bounds that no schedule beats, for all splits of a deployment at once."""
