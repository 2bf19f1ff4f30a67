"""Environment variables that the launcher sets and the models read."""

LEASE_VARIABLE = "DRAFTHOUSE_LEASE_SECRET"
"""Engines, router and fusion refuse calls that do not carry this run's secret."""

REMOTE_LEASE_VARIABLE = "DRAFTHOUSE_REMOTE_LEASE_SECRET"
"""The secret of the run that remote drafters live in, where no file holds it. Set by whoever starts the server."""
