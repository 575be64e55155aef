"""Modules of the pool family."""

__all__: list[str] = []
