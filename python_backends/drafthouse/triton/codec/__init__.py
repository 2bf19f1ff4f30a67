"""Contract dataclasses to packed tensors and back. Pure numpy; no Triton here."""
