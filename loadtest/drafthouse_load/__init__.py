"""Load generation, benchmarks and soak tests for Drafthouse."""
