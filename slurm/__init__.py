"""Sweep definitions and cluster profiles."""
