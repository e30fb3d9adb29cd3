"""What tests and benchmarks share: worlds of objects, node agents as processes, new versions of a sample, waiting."""
