"""What a URI is: the files of a model with sizes, digests and locations. `resolve` is its door."""
