"""Environment variables that the launcher sets and the models read."""

LEASE_VARIABLE = "DRAFTHOUSE_LEASE_SECRET"
"""Engines, router and fusion refuse calls that do not carry this run's secret."""
