"""The prose that Python carries."""

from __future__ import annotations

import sys

import pytest

from sweeptune.config.errors import ConfigError
from sweeptune.data.topics import load_topics


def test_every_topic_is_a_document_as_it_stands():
    from pydoc_data.topics import topics

    items = load_topics()
    assert [item.messages[0].content for item in items] == [topics[name] for name in sorted(topics)]
    assert {item.messages[0].role for item in items} == {"text"}
    assert len(items) > 70
    assert 400_000 < sum(len(item.messages[0].content.encode()) for item in items) < 900_000
    assert items == load_topics()


def test_a_python_without_topics_names_the_other_way(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ConfigError, match=r"use text of your own: data=text data\.path=<file>\.txt"):
        load_topics()
