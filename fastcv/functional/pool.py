"""The pool family; same stem as csrc/pool."""

__all__: list[str] = []
