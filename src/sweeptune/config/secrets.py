"""Passwords in addresses: kept where a program needs them to go on, and shown, recorded and sent nowhere else."""

from __future__ import annotations

import re

PASSWORD = re.compile(r"(://[^\s/:@]*):\S*@")
"""Up to the last ``@``: a password may hold one that should have been written ``%40``, and a slash."""
PARAMETER = re.compile(r"([?&](?:password|passwd|pwd|sslpassword)=)[^&\s'\"]*", re.IGNORECASE)

MASK = "***"


def masked(text: str) -> str:
    """A text without the passwords of the addresses in it.

    Args:
        text: A command line, a setting or a message.

    Example:
        >>> masked("study.storage=postgresql://ann:secret@db/optuna")
        'study.storage=postgresql://ann:***@db/optuna'
    """
    return PARAMETER.sub(rf"\1{MASK}", PASSWORD.sub(rf"\1:{MASK}@", text))
