"""Suites: a YAML file beside this module fixes data, networks, tasks and defaults."""
