"""Chat templates render as in transformers, refuse with the field's name, and always end."""

import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from headrace.errors import (
    InvalidRequest,
    ModelCorrupt,
    UnsupportedCapability,
    UnsupportedParameter,
)
from headrace_runner.models.chat import ChatTemplate
from headrace_runner.models.sandbox import MAX_SIZE
from headrace_runner.models.tokenizer import Tokenizer

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
ALTERNATING = """{{ bos_token }}{% for message in messages %}
{% if message['role'] not in ['user', 'assistant'] %}
{{ raise_exception('Only user and assistant roles are supported!') }}
{% endif %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/...') }}
{% endif %}
[{{ message['role'] }}] {{ message['content'] | trim }}{{ eos_token }}
{% endfor %}"""
TOOLS = """{%- set ns = namespace(system='', calls=0) %}
{%- macro json(value, indent=none) %}{{ value | tojson(indent=indent) }}{% endmacro %}
{%- for message in messages if message.role == 'system' %}
{%- set ns.system = ns.system ~ message.content %}{% endfor %}
{{- ns.system + '\\n' }}
{%- if tools %}{% for tool in tools %}{{ json(tool) }}
{% endfor %}{% endif %}
{%- for message in messages %}
  {%- if message.role == 'system' %}{% continue %}{% endif %}
  {%- generation %}{{ message.role }}: {{ message.content }}{% endgeneration %}
  {%- for call in message.tool_calls or [] %}
    {%- set ns.calls = ns.calls + 1 %} #{{ ns.calls }} {{ call.function.name }}
    {%- for key, value in call.function.arguments.items() %} {{ key }}={{ value }}{% endfor %}
    {{- '' if loop.last else ';' }}
  {%- endfor %}
  {%- if loop.length > 9 %}{% break %}{% endif %}
{% endfor %}
{%- if add_generation_prompt %}{{ 'assistant:' }}{% if enable_thinking is false %}<no>{% endif %}
{%- endif %}"""
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "  Hi <b>&'\" 日本 "}],
    [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ],
]
CALL = {"type": "function", "id": "1", "function": {"name": "f", "arguments": {"x": 1, "y": "<é>"}}}
WITH_TOOLS: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Call it"},
    {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]},
    {"role": "tool", "content": "42", "tool_call_id": "1"},
]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def _reference(source: str, messages: list[dict[str, Any]], **variables: Any) -> str:
    rendered: Any = render_jinja_template([messages], chat_template=source, **variables)
    return str(rendered[0][0])


def _chat(source: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, TOKENS)


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("source", [ALTERNATING, TOOLS])
@pytest.mark.parametrize("add", [True, False])
def test_renders_as_transformers_does(
    source: str, messages: list[dict[str, Any]], add: bool
) -> None:
    expected = _reference(source, messages, add_generation_prompt=add, **TOKENS)
    assert _chat(source).render(messages, add_generation_prompt=add) == expected


def test_renders_tools_and_options_as_transformers_does() -> None:
    expected = _reference(
        TOOLS,
        WITH_TOOLS,
        tools=[TOOL, TOOL],
        add_generation_prompt=True,
        enable_thinking=False,
        **TOKENS,
    )
    assert expected.endswith("assistant:<no>")
    assert '{"type": "function"' in expected
    rendered = _chat(TOOLS).render(
        WITH_TOOLS, tools=[TOOL, TOOL], template_options={"enable_thinking": False}
    )
    assert rendered == expected


def test_smollm2_as_transformers_does(smollm2_dir: Path, smollm2: Tokenizer) -> None:
    template = ChatTemplate.load(smollm2_dir, smollm2.special_tokens)
    source = (smollm2_dir / "chat_template.jinja").read_text()
    for messages in CONVERSATIONS:
        rendered = template.render(messages)
        assert rendered == _reference(source, messages, add_generation_prompt=True)
        assert rendered.startswith("<|im_start|>system\nYou are a helpful AI assistant named Smol")


def test_dates_come_from_the_clock() -> None:
    rendered = _chat("{{ strftime_now('%Y') }}").render(CONVERSATIONS[0])
    assert rendered == time.strftime("%Y")


def _roles(*roles: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": "x"} for role in roles]


@pytest.mark.parametrize(
    ("roles", "index", "reason"),
    [
        (["tool"], 0, "Only user and assistant"),
        (["user", "assistant", "narrator", "user"], 2, "Only user and assistant"),
        (["assistant", "user"], 0, "must alternate"),
        (["user", "assistant", "user", "user", "assistant"], 3, "must alternate"),
        ([*["user", "assistant"] * 1000, "assistant"], 2000, "must alternate"),
    ],
)
def test_a_refusal_names_the_message(roles: list[str], index: int, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as raised:
        _chat(ALTERNATING).render(_roles(*roles), field="input.chat")
    assert [v.field for v in raised.value.violations] == [f"input.chat.messages[{index}].role"]


def test_other_faults_of_a_conversation_name_the_chat() -> None:
    template = _chat("{% for m in messages %}{{ m.content.missing.deeper }}{% endfor %}")
    with pytest.raises(InvalidRequest) as raised:
        template.render(CONVERSATIONS[0])
    assert [v.field for v in raised.value.violations] == ["chat"]


def test_half_a_surrogate_pair_is_refused() -> None:
    messages = [{"role": "user", "content": json.loads('"\\ud800"')}]
    with pytest.raises(InvalidRequest, match="surrogate"):
        _chat("{{ messages[0].content }}").render(messages)


def test_what_the_template_would_ignore_is_refused() -> None:
    template = _chat(ALTERNATING)
    user = CONVERSATIONS[0]
    with pytest.raises(UnsupportedParameter) as raised:
        template.render(user, tools=[TOOL])
    assert raised.value.metadata["field"] == "chat.tools"
    with pytest.raises(UnsupportedParameter) as raised:
        template.render(user, template_options={"enable_thinking": True})
    assert raised.value.metadata["field"] == "chat.template_options.enable_thinking"
    with pytest.raises(UnsupportedParameter) as raised:
        template.render(WITH_TOOLS)
    assert raised.value.metadata["field"] == "chat.messages[2].tool_calls"
    with pytest.raises(InvalidRequest) as invalid:
        template.render(user, template_options={"bos_token": "x"})
    assert invalid.value.violations[0].field == "chat.template_options.bos_token"


GROW = "{%% set n = namespace(x=%s) %%}{%% for i in range(99) %%}%s{%% endfor %%}"


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% for i in range(10 * 1000000) %}{% endfor %}",
        "{% for i in range(1000) recursive %}{{ loop(range(1000)) }}{% endfor %}",
        "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}",
        "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "{{ 'x' * 10000000000 }}",
        "{{ 10000000000 * 'x' }}",
        "{{ 10 ** 10 ** 10 }}",
        GROW % ("'xx'", "{% set n.x = n.x ~ n.x %}"),
        GROW % ("'xx'", "{% set n.x = n.x + n.x %}"),
        GROW % ("[1]", "{% set n.x = n.x + n.x %}"),
        GROW % ("3", "{% set n.x = n.x * n.x %}"),
        GROW % ("'xx'", "{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}"),
        GROW % ("'a'", "{% set n.x = n.x.replace('a', 'aa') %}"),
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% set n = namespace(__html__=1) %}",
        "{% set n = namespace() %}{% set n._x = 1 %}",
        "{% for x in messages %}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    ],
    ids=range(20),
)
def test_a_template_that_runs_away_or_breaks_out_is_stopped(source: str) -> None:
    started = time.monotonic()
    with pytest.raises(UnsupportedCapability, match="cannot be used") as raised:
        _chat(source).render(CONVERSATIONS[0])
    assert raised.value.metadata["capability"] == "chat"
    assert time.monotonic() - started < 30  # Seconds, not for ever; a busy machine takes some.


@pytest.mark.parametrize(
    "source",
    [
        "{{ ('%200000000d' % 1) | length }}",
        "{{ ('%*d' % (200000000, 1)) | length }}",
        "{{ ('%(a)s' * 10000 % {'a': 'x' * 10000}) | length }}",
        "{{ ('%s' | format('x' * 60000000) ~ '%s' | format('x' * 60000000)) | length }}",
        "{{ '%200000000d' | format(1) | length }}",
        "{{ '{:200000000}'.format(1) | length }}",
        "{{ '{:{}}'.format(1, 200000000) | length }}",
        "{{ ('{0}' * 10000).format('x' * 10000) | length }}",
        "{{ ('{a}' * 10000).format_map({'a': 'x' * 10000}) | length }}",
        "{{ 'x' | center(200000000) | length }}",
        "{{ ['x'] | map('center', 200000000) | list | length }}",
        "{{ 'x'.center(200000000) | length }}",
        "{{ 'x'.ljust(200000000) | length }}",
        "{{ 'x'.rjust(200000000) | length }}",
        "{{ 'x'.zfill(200000000) | length }}",
        "{{ '\\t'.expandtabs(200000000) | length }}",
        "{{ ('x' * 10000).replace('x', 'y' * 10000) | length }}",
        "{{ ('x' * 10000) | replace('x', 'y' * 10000) | length }}",
        "{{ 'x' | indent(200000000, true) | length }}",
        "{{ ('x ' * 10000) | wordwrap(1, wrapstring='y' * 10000) | length }}",
        "{{ (['x'] * 10000) | join('y' * 10000) | length }}",
        "{{ ('y' * 10000).join(['x'] * 10000) | length }}",
        "{{ range(10000) | map('center', 10000) | join | length }}",
        "{{ [1] | tojson(indent=200000000) | length }}",
        "{{ [1] | batch(200000000, 0) | list | length }}",
        "{{ [1] | slice(200000000) | list | length }}",
        "{{ 1 .to_bytes(200000000, 'big') | length }}",
        "{{ ('x' * 10000).translate({120: 'y' * 10000}) | length }}",
        "{{ 'x'.encode() }}",
    ],
    ids=range(29),
)
def test_nothing_too_large_is_built(source: str) -> None:
    template = _chat(source)
    tracemalloc.start()
    try:
        with pytest.raises(UnsupportedCapability, match="cannot be used"):
            template.render(CONVERSATIONS[0])
        assert tracemalloc.get_traced_memory()[1] < 3 * MAX_SIZE
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ '%5.1f|%-4s|%d%%' % (1.25, 'a', 2000000000) }}", "  1.2|a   |2000000000%"),
        ("{{ '%(a)s %(a)s' % {'a': 'x'} }}{{ '%s' % none }}", "x xNone"),
        ("{{ '%s-%s' | format('a', 1) }}{{ '%(a)s' | format(a=1) }}", "a-11"),
        ("{{ '{0:>4}{a!r}{0}'.format(1, a='x') }}", "   1'x'1"),
        ("{{ '{a[b]}'.format_map({'a': {'b': 2000000000}}) }}", "2000000000"),
        ("{{ 'x' | center(5) }}{{ 'x'.center(3, '-') }}{{ 7 | center(3) }}", "  x  -x- 7 "),
        ("{{ 'x'.ljust(2) }}{{ 'x'.rjust(2) }}{{ '7'.zfill(3) }}", "x  x007"),
        ("{{ 'a\\tb'.expandtabs(tabsize=4) }}", "a   b"),
        ("{{ 'aXa'.replace('a', 'bb', 1) }}{{ 'aa' | replace('a', 'b', count=1) }}", "bbXaba"),
        ("{{ 12 | replace(1, 3) }}{{ nothing | replace('a', 'b') }}", "32"),
        ("{{ 'a\\nb' | indent(width=2, first=true) }}", "  a\n  b"),
        ("{{ 'ab cd' | wordwrap(2) }}", "ab\ncd"),
        ("{{ [1, 'a'] | join(', ') }}{{ messages | join(attribute='role') }}", "1, auser"),
        ("{{ '-'.join(['a', 'b']) }}", "a-b"),
        ("{% for i in ['ab'] %}{{ '-'.join(i) }}{{ i.ljust(3) }}{% endfor %}", "a-bab "),
        ("{{ [1, 2, 3] | batch(linecount=2) | list }}", "[[1, 2], [3]]"),
        ("{{ [1, 2, 3] | slice(2) | list }}", "[[1, 2], [3]]"),
        ("{{ 7 % 4 }}", "3"),
    ],
)
def test_bounded_operations_do_what_they_always_did(source: str, text: str) -> None:
    assert _chat(source).render(CONVERSATIONS[0]) == text


def test_long_conversations_are_within_the_limits() -> None:
    messages = _roles(*["user", "assistant"] * 2048)
    assert _chat(ALTERNATING).render(messages).count("x</s>") == 4096
    huge = [{"role": "user", "content": "x" * 16 * 1024 * 1024}]
    assert len(_chat(TOOLS).render(huge)) > 16 * 1024 * 1024


def test_no_template() -> None:
    template = ChatTemplate({}, {})
    assert not template.exists
    with pytest.raises(UnsupportedCapability, match="no chat template"):
        template.render(CONVERSATIONS[0])


def test_templates_are_found_wherever_they_are_kept(tmp_path: Path) -> None:
    def rendered(*, tools: bool = False) -> str:
        template = ChatTemplate.load(tmp_path, {})
        return template.render(CONVERSATIONS[0], tools=[TOOL] if tools else [])

    assert not ChatTemplate.load(tmp_path, {}).exists
    (tmp_path / "chat_template.json").write_text('{"chat_template": "first"}')
    assert rendered() == "first"
    named = [
        {"name": "default", "template": "second"},
        {"name": "tool_use", "template": "tools {{ tools | length }}"},
    ]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert rendered() == "second"
    assert rendered(tools=True) == "tools 1"
    (tmp_path / "chat_template.jinja").write_text("third")
    assert rendered() == "third"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("apart {{ tools }}")
    assert rendered(tools=True).startswith("apart")


@pytest.mark.parametrize("declared", [5, [1], [{"name": "default"}], {"default": 1}])
def test_a_damaged_declaration_is_named(tmp_path: Path, declared: object) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": declared}))
    with pytest.raises(ModelCorrupt, match=r"tokenizer_config\.json"):
        ChatTemplate.load(tmp_path, {})


def test_a_variable_with_a_default_of_the_templates_own_is_an_option() -> None:
    # The form of Llama 3.1's template: read, given a default, read again.
    template = _chat(
        "{% if custom_tools is defined %}{% set tools = custom_tools %}{% endif %}"
        "{% if not date is defined %}{% set date = '26 Jul 2024' %}{% endif %}"
        "{% if not tools is defined %}{% set tools = none %}{% endif %}"
        "{{ date }} {{ tools is none }} {{ messages | length }}"
    )
    user = CONVERSATIONS[0]
    assert template.render(user) == "26 Jul 2024 True 1"
    assert template.render(user, template_options={"date": "now"}) == "now True 1"
    assert template.render(user, tools=[TOOL]) == "26 Jul 2024 False 1"
