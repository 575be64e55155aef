"""The norm family; same stem as csrc/norm."""

__all__: list[str] = []
