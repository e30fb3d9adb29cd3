"""What is on the disk of a node, and in which order it gets there. `Store` is one root; it knows no network."""
