"""Measurements of covidjax beside its peers; run from a checkout, not installed."""
