"""One fill of one model: its files on their way from origins and peers to a verified ingest. `Fill` is its door."""
