"""Everything that knows Triton: tensor schema, codecs, BLS clients and the four model classes."""
