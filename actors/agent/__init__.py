"""The agent of one node: what it should hold, has, does next, and reports. `NodeAgent` is its door."""
