"""The loss family; same stem as csrc/loss."""

__all__: list[str] = []
