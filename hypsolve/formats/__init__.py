"""Read and write files: instances, networks, models, request traces, benchmarks."""
