"""Owns the demo checkpoints: drawn landscapes, their captions, and the training of two small pipelines."""
