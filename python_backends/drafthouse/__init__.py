"""Drafthouse: collaborative speculative decoding on NVIDIA Triton Inference Server."""
