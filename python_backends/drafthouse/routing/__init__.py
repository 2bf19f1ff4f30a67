"""Which drafters work for which request in the next round (CoSine, arXiv 2503.10325, adaptive routing)."""
