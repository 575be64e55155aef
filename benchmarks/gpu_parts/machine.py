"""The machine that results belong to, as one task for a worker."""

from __future__ import annotations

from typing import Any

from .device import facts


def run(key: dict[str, str], options: dict[str, Any]) -> list[dict[str, Any]]:
    return [facts(options)]
