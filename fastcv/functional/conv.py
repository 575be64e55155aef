"""The conv family; same stem as csrc/conv."""

__all__: list[str] = []
