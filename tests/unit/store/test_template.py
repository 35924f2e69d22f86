"""The template linter: what no template needs is found, real templates pass, and it is quick."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.store.gguf import read_header
from stoker.store.template import MAX_CHARACTERS, lint
from tests.fakes.gguf_files import CHAT_TEMPLATE

TOOLS = """\
{%- macro render(name, spec) -%}
{{- '{"name": "' ~ name ~ '", "x": {{' ~ (spec | tojson(indent=2)) ~ '}}}' }}
{%- endmacro -%}
{%- set ns = namespace(found=false, last={'a': {'b': [1, 2, (3)]}}) -%}
{%- if tools is defined and tools | length > 0 %}
{{- "# Tools\\n\\nUse __init__ or \\"class\\" freely; import, include and eval are just words." }}
{%- for tool in tools | selectattr('type', 'equalto', 'function') | map(attribute='function') %}
{{- render(tool.name, tool.parameters) }}
{%- endfor %}
{%- elif messages[0].role == 'system' -%}{{- messages[0].content | trim -}}
{%- else -%}You are helpful \N{SMILING FACE WITH SMILING EYES}\ufe0f.{%- endif %}
{% set banner %}<|im_start|>{% endset %}
{# a comment with {{ braces and a " quote #}
{%- for message in messages[::-1] if not (message.role == 'tool' and loop.last) -%}
{{- banner + message['content'].split('</think>')[-1].lstrip('\\n') if message.content is string
    else raise_exception("Only text, please.") -}}
{%- endfor -%}
"""


def codes(template: str) -> set[str]:
    return {finding.code for finding in lint(template)}


@pytest.mark.parametrize("template", ["", "plain text", CHAT_TEMPLATE, TOOLS])
def test_harmless_templates_pass(template: str) -> None:
    assert lint(template) == ()


def test_the_starters_template_passes(starter_gguf: Path) -> None:
    with starter_gguf.open("rb") as stream:
        header = read_header(stream, starter_gguf.stat().st_size)

    assert header.templates
    assert all(lint(text) == () for text in header.templates.values())


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ x['__class__'] }}",
        "{{ x['__globals__'] }}",
        "{% for c in [].__class__.__base__.__subclasses__() %}{% endfor %}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ lipsum }}",
        "{{ x.popen('id') }}",
        "{{ x['popen']('id') }}",
        "{{ x | attr('y') }}",
        "{{ x|attr ( 'y' ) }}",
        "{{ x['\\x5f\\x5fclass\\x5f\\x5f'] }}",
        "{{ x['\\u005f_class__'] }}",
        "{{ x.__anything }}",
        "{{ '{0.__class__}'.format(x) }}",
        "{{ x.gi_frame.f_builtins }}",
        "{{ eval('1') }}",
        "{{ getattr(x, 'y') }}",
        "{{- x.subprocess -}}",
        "text {{ '}}' ~ \"%}\" ~ x.popen }}",
        "{# {{ #}{{ x.popen }}",
        "{% raw %}{{ ' {% endraw %}{{ x.popen }}",
        "{{ {'a': {'b': 1}}.popen }}",
    ],
)
def test_reaching_for_code_is_found(template: str) -> None:
    assert codes(template) == {"template_code"}


@pytest.mark.parametrize(
    "template",
    [
        "{% import 'x' as y %}",
        "{%- from 'x' import y -%}",
        "{% include 'x' %}",
        "{%+ extends 'x' %}",
        "{%include'x'%}",
        "{% raw %}{{ \" {% endraw %}{% include 'x' %}",
    ],
)
def test_loading_another_file_is_found(template: str) -> None:
    assert codes(template) == {"template_loads"}


@pytest.mark.parametrize(
    "character",
    [
        "\u202e",
        "\u2066",
        "\u200b",
        "\u200d",
        "\u2060",
        "\ufeff",
        "\u00ad",
        "\u3164",
        "\U000e0041",
        "\U000e0100",
        "\ufe00",
        "\ufe0f\ufe0f",
        "\x00",
        "\x1b",
    ],
)
def test_characters_that_cannot_be_seen_are_found(character: str) -> None:
    assert codes(f"Be{character}ware {{{{ x }}}}") == {"template_invisible"}


@pytest.mark.parametrize(
    "template",
    [
        "{{ " + "(" * 100 + "1" + ")" * 100 + " }}",
        "{{ " + "[" * 6000,
        "{{ " + "not " * 6000 + "x }}",
        "{{ " + "-" * 6000 + "1 }}",
        "{{ " + "1 if x else " * 600 + "2 }}",
        "{% if x %}" * 100 + "{% endif %}" * 100,
        "{% for a in b %}" * 6000,
        "{% if x %}" + "{% elif y %}" * 600 + "{% endif %}",
        "{% set a %}" * 100 + "{% endset %}" * 100,
        "{{ " + "a + " * 10_000 + "a }}",
    ],
)
def test_nesting_that_kills_a_parser_is_found(template: str) -> None:
    assert codes(template) == {"template_too_deep"}


def test_nesting_as_deep_as_real_templates_passes() -> None:
    template = "{% if x %}" * 20 + "{{ ((((((((1)))))))) }}" + "{% endif %}" * 20

    assert lint(template) == ()


def test_many_branches_one_after_another_pass() -> None:
    assert lint("{% if x %}a{% elif y %}b{% endif %}" * 2000) == ()


def test_a_template_beyond_all_measure_is_found() -> None:
    assert codes("x" * (MAX_CHARACTERS + 1)) == {"template_too_big"}


@pytest.mark.parametrize(
    "piece", ["{{", "{%", "{#", "'", "\\'", "{{'", "{{ '\\", "|attr", "not ", "{{ x|", "__", "{{ {"]
)
def test_no_template_takes_long(piece: str) -> None:
    """Linear time: a quadratic rule would take minutes at this length."""
    template = "{{ " + piece * ((MAX_CHARACTERS - 3) // len(piece))

    started = time.thread_time()
    lint(template)

    assert time.thread_time() - started < 3


@given(st.text(st.sampled_from("{}%#'\"\\ ()[]|_-aif.for\u202e"), max_size=200))
def test_any_text_is_judged_without_an_exception(template: str) -> None:
    for finding in lint(template):
        assert finding.code.startswith("template_")
        assert str(finding)
