"""How drivers tell of an error; README.md says what the keys are."""

from __future__ import annotations

from typing import Any

from headrace.errors import HeadraceError


def told(error: HeadraceError) -> dict[str, Any]:
    """What a driver has to tell of an error."""
    return {
        "code": error.code.name,
        "reason": error.reason,
        "message": error.message,
        "metadata": dict(error.metadata),
        "retry_after": error.retry_after,
        "violations": [
            {"field": each.field, "description": each.description} for each in error.violations
        ],
    }
