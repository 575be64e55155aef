"""The model zoo: one architecture per file. Each takes ``layers=`` (``torch.nn`` or ``fastcv.nn``) and nothing else changes."""
