"""The neighbors family; same stem as csrc/neighbors."""

__all__: list[str] = []
