"""fastcv.explain: what each layer of a model costs, and why it is not faster."""

from .explain import explain
from .explanation import Choice, Explanation, Layer

__all__ = ["Choice", "Explanation", "Layer", "explain"]
