"""Which templates are proved to write contents as they are; and that rows are the same where the proof saves work."""

from __future__ import annotations

import pytest

from sweeptune.data.tokenize import Encoder
from sweeptune.data.verbatim import verbatim
from sweeptune.models.tiny import CHATML
from tests.data.helpers import template_config
from tests.data.test_template import chat, tokenizer

SAID = "{{ m['content'] }}"


def each(body: str, before: str = "") -> str:
    return f"{before}{{% for m in messages %}}{body}{{% endfor %}}"


@pytest.mark.parametrize(
    "template",
    [
        CHATML,
        each(SAID),
        each("{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ eos_token }}"),
        each("{% if loop.first and messages[0]['role'] != 'system' %}S{% elif not loop.last %}, {% endif %}" + SAID),
        each("{{ m.role | upper }}{% if tools and messages %}{{ tools | tojson }}{% endif %}" + SAID),
        each("{% if 'name' not in m and m.tool_calls is not defined %}" + SAID + "{% endif %}"),
        each("{% set said = ': ' + m.content %}{{ m.role + said }}"),
        each("{% if m.role == 'tool' %}{{ raise_exception('no ' + m.role) }}{% endif %}" + SAID),
        each("{% set ns.last = m.role %}" + SAID, "{% set ns = namespace(last='') %}"),
        "{% if messages[0].role == 'system' %}{% set first = messages[0].content %}{% set rest = messages[1:] %}"
        "{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}{{ first }}"
        "{% for m in rest %}{{ rest | length }}{{ m.content if m.role == 'user' else '> ' + m.content }}{% endfor %}",
    ],
)
def test_templates_that_write_contents_as_they_are(template):
    assert verbatim(template)


@pytest.mark.parametrize(
    "template",
    [
        each("{{ m.content | trim }}"),
        each("{{ m['content'].strip() }}"),
        each("{{ (m.content + 'x') | upper }}"),
        each("{{ m.content | length }}" + SAID),
        each("{{ m.content * 2 }}"),
        each("{{ m.content[:9] }}"),
        each("{{ m.content.split('</think>')[-1] }}"),
        each("{% for word in m.content %}{{ word }}{% endfor %}"),
        each("{% for word in m.content.split() %}{{ word }}{% endfor %}"),
        each("{{ [m.content] | join }}"),
        each("{{ {'said': m.content} | tojson }}"),
        each("{{ '%s' % m.content }}"),
        each("{{ ('<b>' | safe) + m.content }}"),
        # Conditions on a content
        each("{% if m.content %}" + SAID + "{% endif %}"),
        each("{% if 'x' in m['content'] %}y{% endif %}" + SAID),
        each("{% if m.content == 'x' %}y{% endif %}" + SAID),
        each("{% if m.content is string %}" + SAID + "{% endif %}"),
        each("{{ m.content or 'nothing' }}"),
        each("{{ 'x' if m.content else 'y' }}" + SAID),
        "{% for m in messages if m.content %}" + SAID + "{% endfor %}",
        each("{{ loop.changed(m.content) }}" + SAID),
        each("{% if loop.previtem.content %}x{% endif %}" + SAID),
        each("{{ m[m.content] }}" + SAID),
        # A content, or what holds one, on its way into something else
        each("{% set said = m.content %}{% if said %}{{ said }}{% endif %}"),
        each("{{ said }}{% if later %}x{% endif %}{% set said = m.content %}{% set later = said %}"),
        each("{% set ns.said = m.content %}" + SAID, "{% set ns = namespace(said='') %}"),
        each(SAID, "{% set ns = namespace(said=messages[0].content) %}"),
        each(SAID, "{% set m = 'x' %}{% set m = m + messages[0].content %}"),
        each("{% set said %}{{ m.content }}{% endset %}{{ said | trim }}"),
        each("{% set a, b = m.content, 1 %}{{ a }}"),
        each("{% with said = m.content %}{{ said | trim }}{% endwith %}"),
        each(SAID, "{% set loop = messages[0] %}{{ loop.first }}"),
        # Macros, blocks and other text that is caught
        each("{{ say(m.content) }}", "{% macro say(said) %}{{ said | trim }}{% endmacro %}"),
        each("{{ say(m) }}", "{% macro say(said) %}{{ said.content }}{% endmacro %}"),
        each("{% filter trim %}" + SAID + "{% endfilter %}"),
        each("{% generation %}" + SAID + "{% endgeneration %}"),
        each("{% autoescape true %}" + SAID + "{% endautoescape %}"),
        "{% block all %}" + each(SAID) + "{% endblock %}{{ self.all() | trim }}",
        "{% for m in messages recursive %}" + SAID + "{% endfor %}",
        # A message, or all of them, as a whole
        each("{{ m }}"),
        each("{{ m | tojson }}"),
        each("{{ m.values() | list }}"),
        each("{{ m.get('content') }}"),
        each("{{ m['items']() }}"),
        each("{% for key in m %}{{ m[key] }}{% endfor %}"),
        each("{% if m == messages[0] %}x{% endif %}" + SAID),
        each("{% if 'x' in m.values() %}x{% endif %}" + SAID),
        each(SAID, "{{ messages }}"),
        each(SAID, "{{ messages or 'none' }}"),
        each(SAID, "{{ messages | map(attribute='content') | join }}"),
        each(SAID, "{% if messages | selectattr('content') | list %}x{% endif %}"),
        each(SAID, "{{ messages | tojson | length }}"),
        # Values that are not the same from row to row
        each(SAID, "{{ ['a', 'b'] | random }}"),
        each(SAID, "{{ lipsum() }}"),
    ],
)
def test_templates_about_which_nothing_is_proved(template):
    assert not verbatim(template)


def test_rows_are_the_same_with_and_without_the_proof():
    rows = [chat(("user", q), ("assistant", a)) for q in ("", " q", "q\n", "<|im_end|>", "Qq1qQ") for a in ("a", " ")]
    for template in (CHATML, CHATML.replace("message['content']", "message['content'] | trim")):
        assert verbatim(template) == (template is CHATML)
        quick = Encoder(tokenizer(template=template), template_config(), "all")
        slow = Encoder(tokenizer(template=template), template_config(), "all")
        slow.renderer.verbatim = False
        assert list(quick.encode(rows)) == list(slow.encode(rows))
