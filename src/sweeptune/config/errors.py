"""What a user sees when a setting is wrong."""

from __future__ import annotations

from collections.abc import Sequence

from sweeptune.config.secrets import masked


class ConfigError(Exception):
    """One or more settings are wrong; nothing has been loaded or written.

    Args:
        problems: One sentence each: the value seen, what is allowed, the override that fixes it. Passwords in addresses
            are masked, whoever wrote the sentence.

    Example:
        >>> print(ConfigError(["method=lorra: no such option. Did you mean method=lora?"]))
        1 problem with the configuration:
          1. method=lorra: no such option. Did you mean method=lora?
    """

    def __init__(self, problems: Sequence[str] | str) -> None:
        self.problems = [masked(text) for text in ([problems] if isinstance(problems, str) else problems)]
        super().__init__(str(self))

    def __str__(self) -> str:
        count = len(self.problems)
        head = f"{count} problem{'s' if count != 1 else ''} with the configuration:"
        return "\n".join([head, *(f"  {i}. {text}" for i, text in enumerate(self.problems, 1))])
