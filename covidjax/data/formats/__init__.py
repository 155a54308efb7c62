"""Readers of image files: the bytes of one file to its samples, whole and as its tags say, or a reason."""
