"""The seam to Kubernetes: `interface` is what the rest knows, `http` the real one."""
