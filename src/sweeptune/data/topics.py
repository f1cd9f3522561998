"""``data=pydocs_text``: raw text that every Python carries, the prose of its manual's topics.

These are the texts behind ``help("LOOPING")``: on CPython 3.11 79 documents, 466 kB. They are taken as they stand.
"""

from __future__ import annotations

from sweeptune.config.errors import ConfigError
from sweeptune.data.conversation import TEXT, Conversation, Message, conversation


def load_topics() -> list[Conversation]:
    """Read all topics, in the order of their names, each a document.

    Raises:
        ConfigError: This Python comes without them.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ConfigError(
            "data=pydocs_text: this Python comes without pydoc_data.topics, the text of its manual; "
            "use text of your own: data=text data.path=<file>.txt"
        ) from error
    return [
        conversation([Message(TEXT, text)], place=f"pydoc_data.topics, {name}") for name, text in sorted(topics.items())
    ]
