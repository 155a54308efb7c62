"""Freeze strategies compared over seeds."""
