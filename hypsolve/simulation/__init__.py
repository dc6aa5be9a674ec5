"""What happens to requests: token-level simulation, events, workloads, traces."""
