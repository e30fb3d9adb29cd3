"""Committed copies are read again: what is damaged is found, named and repaired."""
