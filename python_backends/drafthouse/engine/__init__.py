"""The engine: one model, its key/value pool, and the `step` / `release` contract around them."""
