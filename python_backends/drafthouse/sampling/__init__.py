"""Choosing the next token: counter-based noise, filters, bans, Gumbel-max. Pure functions."""
