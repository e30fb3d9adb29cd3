"""Cooperative fills in virtual time: the mesh of the agents in a simulated network."""
