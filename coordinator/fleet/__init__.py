"""The seam to the node agents: `interface` is what the rest knows, `ray_fleet` the one on Ray."""
