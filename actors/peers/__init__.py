"""Sockets between nodes: a server of chunks, a client for them, and one swarm for each fill. `Exchange`."""
