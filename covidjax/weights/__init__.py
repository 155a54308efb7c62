"""Weights from elsewhere: the catalog of known sources, readers of files, maps of names, and trained networks."""
