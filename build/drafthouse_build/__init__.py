"""Turns Hugging Face checkpoints into engines and into a complete Triton model repository. Needs no PyTorch."""
