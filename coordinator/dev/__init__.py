"""The laptop cluster: a development API server, a sample origin and a small Ray cluster. For laptops and tests only."""
