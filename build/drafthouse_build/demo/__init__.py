"""Training of the demo models: corpora, tokenizer, target, drafters and the acceptance matrix."""
