"""Simulation of requests: token level and flow level, events, workloads, traces."""
