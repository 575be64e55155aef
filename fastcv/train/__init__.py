"""Datasets, the training loop, its progress and its pictures."""
