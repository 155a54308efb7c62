"""Pretrained weights: files, name maps, and the catalog of known sources."""
