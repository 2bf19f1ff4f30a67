"""Scheduling policies: one small file each; `registry` knows them by name."""
