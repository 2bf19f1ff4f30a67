"""Drafters that other Triton servers run (CoSine's speculation cluster), reached by gRPC."""
