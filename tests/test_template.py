"""Chat templates: conversations as clients write them, in the styles of the common families."""

import json
import threading
from datetime import datetime

import pytest

from gemcut.errors import EngineError, UsageError
from gemcut.runtime.language import sandbox
from gemcut.runtime.language.template import Template

HI = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALL = {"id": "abcdefghi", "type": "function",
        "function": {"name": "look", "arguments": '{"q": "é <b>", "n": 2}'}}  # fmt: skip
TALK = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": t} for t in ("Look ", "up")]},
    {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "abcdefghi", "content": "found"},
]  # fmt: skip

# Each in the style of a family: how turns, tools, calls, results and thoughts are written.
CHATML = """
{%- if tools %}{{ '<tools>' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{{ '</tools>' }}{% endif %}
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}
{%- if m.reasoning_content is string %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}
{{- m.content }}
{%- for call in m.tool_calls or [] %}{% set call = call.function %}
<tool_call>{"name": "{{ call.name }}", "arguments": {% if call.arguments is string %}{{ call.arguments }}{% else %}{{ call.arguments | tojson }}{% endif %}}</tool_call>
{%- endfor %}{{ '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think></think>' }}{% endif %}{% endif %}"""  # noqa: E501
CHATML_SAID = (
    '<tools>{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}'
    "</tools><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nLook up<|im_end|>\n"
    '<|im_start|>assistant\n<think>hm</think><tool_call>{"name": "look", "arguments": '
    '{"q": "é <b>", "n": 2}}</tool_call><|im_end|>\n<|im_start|>tool\nfound<|im_end|>\n'
    "<|im_start|>assistant\n"
)
GEMMA = """
{%- macro said(value) %}{% if value is string %}{{ '<|"|>' + value + '<|"|>' }}{% else %}{{ value }}{% endif %}{% endmacro %}
{{- bos_token }}{% if messages[0].role in ['system', 'developer'] %}{{ '<|turn>system\\n' }}
{%- if enable_thinking %}{{ '<|think|>\\n' }}{% endif %}{{ messages[0].content | trim }}<turn|>
{% set messages = messages[1:] %}{% endif %}
{%- for m in messages %}{% if m.role != 'tool' %}<|turn>{{ 'model' if m.role == 'assistant' else m.role }}
{% for call in m.get('tool_calls') or [] %}<|tool_call>call:{{ call['function']['name'] }}{
{%- for key, value in call['function']['arguments'] | dictsort %}{{ key }}:{{ said(value) }}{{ ',' if not loop.last }}{% endfor %}}<tool_call|>
{%- endfor %}{{ m.content }}{% if not m.tool_calls %}<turn|>
{% endif %}{% else %}<|tool_response>response:look{value:{{ said(m.content) }}}<tool_response|>{% endif %}{% endfor %}"""  # noqa: E501
GEMMA_SAID = (
    "<bos><|turn>system\n<|think|>\nBe brief.<turn|>\n<|turn>user\nLook up<turn|>\n<|turn>model\n"
    '<|tool_call>call:look{n:2,q:<|"|>é <b><|"|>}<tool_call|>'
    '<|tool_response>response:look{value:<|"|>found<|"|>}<tool_response|>'
)
LLAMA = """{{- bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>' }}
{%- if 'tool_calls' in m %}{% if not m.tool_calls|length == 1 %}{{ raise_exception('one call only') }}{% endif %}
{{- '{"name": "' ~ m.tool_calls[0].function.name ~ '", "parameters": ' ~ m.tool_calls[0].function.arguments ~ '}<|eot_id|>' }}
{%- else %}{{ m['content'] | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"""  # noqa: E501
LLAMA_SAID = (
    "<bos><|start_header_id|>system<|end_header_id|>Be brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>Look up<|eot_id|>"
    '<|start_header_id|>assistant<|end_header_id|>{"name": "look", "parameters": '
    '{"q": "é <b>", "n": 2}}<|eot_id|><|start_header_id|>tool<|end_header_id|>found<|eot_id|>'
)
HARMONY = """{%- set last = namespace(name=none) %}
{{- '<|start|>system<|message|>' + strftime_now('%Y-%m-%d') + ' ' + reasoning_effort | default('medium') }}
{%- for m in messages %}{% if m.role == 'assistant' and 'tool_calls' in m %}
{{- '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}
{%- set last.name = m.tool_calls[0].function.name %}
{{- '<|start|>assistant to=functions.' + last.name + '<|channel|>commentary json<|message|>' }}
{{- m.tool_calls[0].function.arguments | tojson }}<|call|>
{%- elif m.role == 'tool' %}{{- '<|start|>functions.' + last.name + ' to=assistant<|message|>' + m.content | tojson }}
{%- else %}{{- '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}<|start|>assistant{% endif %}"""  # noqa: E501
HARMONY_SAID = (
    "<|start|>system<|message|>2026-02-03 low<|start|>system<|message|>Be brief.<|end|>"
    "<|start|>user<|message|>Look up<|end|>"
    "<|start|>assistant<|channel|>analysis<|message|>hm<|end|>"
    "<|start|>assistant to=functions.look<|channel|>commentary json<|message|>"
    '{"q": "é <b>", "n": 2}<|call|>'
    '<|start|>functions.look to=assistant<|message|>"found"<|start|>assistant'
)
DEEPSEEK = """{%- set ns = namespace(system='') %}{% for m in messages %}{% if m['role'] == 'system' %}
{%- set ns.system = ns.system + m['content'] %}{% endif %}{% endfor %}{{ bos_token }}{{ ns.system }}
{%- for m in messages %}{% generation %}{% if m['role'] == 'user' %}{{ '<User>' + m['content'] }}
{%- elif m['role'] == 'assistant' and m['tool_calls'] %}{% for call in m['tool_calls'] %}
{{- '<call>' + call['type'] + '<sep>' + call['function']['name'] + '\\n```json\\n' + call['function']['arguments'] + '\\n```' }}
{%- endfor %}{% elif m['role'] == 'tool' %}{{ '<output>' + m['content'] }}{% else %}{% continue %}{% endif %}{% endgeneration %}{% endfor %}
{%- if add_generation_prompt %}{{ '<Assistant><think>\\n' }}{% if thinking is defined and not thinking %}{{ '</think>' }}{% endif %}{% endif %}"""  # noqa: E501
DEEPSEEK_SAID = (
    "<bos>Be brief.<User>Look up<call>function<sep>look\n```json\n"
    '{"q": "é <b>", "n": 2}\n```<output>found<Assistant><think>\n'
)
FAMILIES = {
    "chatml": (CHATML, CHATML_SAID),
    "gemma": (GEMMA, GEMMA_SAID),
    "llama": (LLAMA, LLAMA_SAID),
    "harmony": (HARMONY, HARMONY_SAID),
    "deepseek": (DEEPSEEK, DEEPSEEK_SAID),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_reads_the_same_conversation(family):
    """Calls with their arguments as an object or as text, as the template wants them."""
    source, expected = FAMILIES[family]
    template = Template(source, "<bos>", "<eos>", today=datetime(2026, 2, 3))

    found = template.render(TALK, [TOOL], think=True, reasoning_effort="low")
    assert expected == found
    as_objects = json.loads(json.dumps(TALK))
    as_objects[2]["tool_calls"][0]["function"]["arguments"] = {"q": "é <b>", "n": 2}
    assert expected == template.render(as_objects, [TOOL], think=True, reasoning_effort="low")


def test_thinking_is_asked_for_or_not():
    """By either name that templates have for it; said nothing, the template decides."""
    source = "{{ enable_thinking is defined }} {{ enable_thinking }} {{ thinking }}"
    assert ["True True True", "True False False", "False  "] == [
        Template(source).render(HI, think=think) for think in (True, False, None)
    ]
    chatml, deepseek = Template(CHATML), Template(DEEPSEEK)
    assert chatml.render(HI, think=False).endswith("assistant\n<think></think>")
    assert chatml.render(HI).endswith("assistant\n")
    assert deepseek.render(HI, think=False).endswith("<think>\n</think>")
    assert "<|im_start|>user\nHi<|im_end|>\n" == chatml.render(HI, generate=False)


def test_a_template_gets_what_templates_use():
    """Blocks are trimmed, loops break, JSON is not escaped, dates and tokens are there."""
    source = """
{%- for m in messages %}
    {%- if loop.index > 1 %}{% break %}{% endif %}
{{ bos_token }}{{ m | tojson }}{{ eos_token }}
{%- endfor %}
{{ strftime_now("%Y") | length }}{{ enable_thinking }}{{ tools is none }}"""
    messages = [{"role": "user", "content": "<é>"}] * 2

    found = Template(source, "<b>", "<e>").render(messages, think=True)

    assert found == '<b>{"role": "user", "content": "<é>"}<e>4TrueTrue'


def test_json_is_written_as_asked():
    """With indents, separators, sorted keys, ASCII, and of what other filters make."""
    source = """{{ x | tojson(indent=1) }} {{ x | tojson(separators=(',', ':'), sort_keys=true) }}
{{- x | tojson(ensure_ascii=true) }} {{ messages | map(attribute='role') | tojson }}"""

    found = Template(source).render(HI, x={"b": "é", "a": 1})
    assert '{\n "b": "é",\n "a": 1\n} {"a":1,"b":"é"}{"b": "\\u00e9", "a": 1} ["user"]' == found


def test_templates_that_want_tools_get_an_empty_list():
    """Some go through them without asking whether there are any."""
    assert "x" == Template("{% for tool in tools %}{% endfor %}x").render(HI)


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ("Hi", "wanted an object with a role"),
        ({"content": "Hi"}, "wanted an object with a role"),
        ({"role": "user", "content": 5}, "content is '5', wanted a list"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "image_url.*text alone"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "input_audio"),
        ({"role": "user", "content": ["Hi"]}, "text alone"),
        ({"role": "assistant", "tool_calls": {}}, None),
        ({"role": "assistant", "tool_calls": "x"}, "wanted a list"),
        ({"role": "assistant", "tool_calls": [{}]}, "without the name"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}, "not JSON"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": [1]}]}, "no JSON object"),
    ],
)  # fmt: skip
def test_malformed_messages_are_refused(message, why):
    """With the number of the message; nothing of it reaches the template."""
    template = Template(CHATML)
    if why is None:
        assert template.render([*HI, message])
    else:
        with pytest.raises(UsageError, match=rf"messages\[1\].*{why}"):
            template.render([*HI, message])


# --- templates from anywhere ---


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{{ raise_exception('no system please') }}", "refuses.*no system please"),
        ("{{ messages[0].content.nothing.here }}", "refuses"),
        ("{{ messages[9]['role'] }}", "refuses"),
        ("{{ messages.append(1) }}", "refuses"),
        ("{{ ''.__class__.__mro__ }}", "refuses"),
        ("{{ 1 / 0 }}", "refuses"),
        ("{% include 'other' %}", "refuses"),
        ("{{ lipsum(n=99999999) }}", "refuses"),
        ("{{ 'x' | center(9999999999) }}", "not valid"),
        ("{{ messages | tojson(indent=99999999) }}", "indent of"),
        ("{% if %}", "not valid"),
        ("{{ (" * 5000 + "1" + ") }}" * 5000, "not valid"),
        ("x" * (1 << 21), "wanted at most"),
    ],
)
def test_a_template_cannot_do_harm(source, why):
    """What fails, refuses or reaches out of the sandbox ends in an error with its reason."""
    with pytest.raises(EngineError, match=why):
        Template(source).render(HI)


TWICE = "{% set a = ['xxxxxxxx'] %}" + "{% set a = [a, a] %}" * 40


@pytest.mark.parametrize(
    "rest",
    [
        *("{{ a }}", "{{ 'x' ~ a }}", "{{ a | string }}", "{{ a | tojson }}", "{{ '%s' % a }}"),
        *("{{ '{}'.format(a) }}", "{{ [a] | map('string') | list }}", "{{ a | sort }}"),
        *("{{ a == [a] }}", "{{ a in [[a, 1]] }}", "{{ a is eq [a] }}", "{{ {'b': a} }}"),
        *("{{ [[1, a], [1, a]] | sort }}", "{{ dict(b=a) }}", "{{ a.index(1) }}", ""),
    ],
)
def test_what_holds_itself_twice_again_and_again_is_refused(rest):
    """Written out, compared or hashed it would hardly end: lists, tuples, through a macro."""
    for source in (
        TWICE + rest,
        TWICE.replace("[a, a]", "(a, a)") + rest,
        "{% macro f() %}{{ caller(varargs, varargs) }}{% endmacro %}" + TWICE + rest,
        TWICE.replace("[a, a]", "{'k': a, 'l': a}") + rest,
    ):
        with pytest.raises(EngineError, match="written in more than"):
            Template(source).render(HI)


def test_a_namespace_is_not_written_out():
    """It alone can be changed: what holds it would be larger than it was weighed."""
    source = "{% set n = namespace(a=1) %}{% set n.a = [n, n] %}{{ [n, n] }}"

    assert "[<Namespace>, <Namespace>]" == Template(source).render(HI)


@pytest.mark.parametrize("source", ["{{ 'x'" + " | tojson" * 100 + " }}", "{{ 'x' | tojson }}"])
def test_texts_in_texts_in_texts_are_bounded(source):
    """Each takes the one before twice over: nothing of it is worked out while compiling."""
    template = Template(source)
    if source.count("tojson") > 1:
        with pytest.raises(EngineError, match="refuses"):
            template.render(HI)
    else:
        assert '"x"' == template.render(HI)


@pytest.mark.parametrize(
    "source",
    [
        "{% set a = range(9999) | list %}" + "{% set a = [a, a] %}" * 6 + "LOOP{{ a == b }}END",
        "{% set a = range(9999) | list %}LOOP{% if [a, i] in [[a, 0], [a, 1]] %}{% endif %}END",
        "{% set a = [range(9999) | list] * 9 %}LOOP{% set c = a | sort %}END",
    ],
)
def test_comparing_costs_what_it_takes(source):
    """As often as a loop likes, until the work is too much."""
    source = source.replace("LOOP", "{% set b = a[:] %}" + LOOP).replace("END", END)
    with pytest.raises(EngineError, match="too much"):
        Template(source).render(HI)


LOOP = "{% for i in range(99999) %}"
END = "{% endfor %}"


@pytest.mark.parametrize(
    "source",
    [
        LOOP * 4 + END * 4,
        LOOP * 2 + "x" + END * 2,
        LOOP + "{{ 'x' * 9999 }}" + END,
        "{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) if n }}{% endmacro %}{{ f(99) }}",
        "{% set ns = namespace(s='xxxxxxxx') %}" + LOOP + "{% set ns.s = ns.s + ns.s %}" + END,
        "{% set ns = namespace(s='xxxxxxxx') %}" + LOOP + "{% set ns.s = ns.s ~ ns.s %}" + END,
        "{% set ns = namespace(l=[1]) %}" + LOOP + "{% set ns.l = ns.l + ns.l %}" + END,
        "{% set ns = namespace(s='x' * 9999) %}" + LOOP
        + "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}" + END,
        "{% set ns = namespace(l=[], s='x' * 999999) %}" + LOOP
        + "{% set ns.l = ns.l + [ns.s[1:]] %}" + END,
        "{% set ns = namespace(n=9) %}" + LOOP + "{% set ns.n = ns.n * ns.n %}" + END,
        "{{ 'x' * 99999999999 }}",
        "{{ [1] * 99999999999 }}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ 'x'.center(99999999999) }}",
        "{{ 'x'.ljust(99999999999) }}",
        "{{ '%99999999999d' % 1 }}",
        "{{ '%*d' % (99999999999, 1) }}",
        "{{ '%99999999999d' | format(1) }}",
        "{{ '{:>99999999999}'.format(1) }}",
        "{{ '{:>{}}'.format(1, 99999999999) }}",
        "{% set s = 'x' * 999999 %}{{ s.replace('x', s) }}",
        "{% set s = 'x' * 999999 %}{{ s | replace('x', s) }}",
        "{% set s = 'x' * 999999 %}{{ s.join(s | list) }}",
        "{% set s = 'x' * 999999 %}{{ s | list | join(s) }}",
        "{{ ('x\\n' * 99999) | indent(99999) }}",
        "{{ range(99999) | map('indent', 99999) | list }}",
    ],
)  # fmt: skip
def test_a_template_cannot_hang_or_fill_memory(source, monkeypatch):
    """However it goes about it, it is stopped, in little time and memory."""
    monkeypatch.setattr(sandbox, "_MOST_WORK", 300_000)  # sooner than usual
    with pytest.raises(EngineError, match="too much|more than|width|large number|unsafe|refuses"):
        Template(source).render(HI)


def test_long_conversations_have_room():
    """Thousands of turns, each gone over again for each, and a text of a million characters."""
    source = LOOP.replace("range(99999)", "messages") * 2 + "x" + END * 2
    turns = [{"role": "user", "content": "x"}] * 1500

    assert 1500**2 == len(Template(source).render(turns))
    long = [{"role": "user", "content": "x" * 1_000_000}]
    assert Template(CHATML).render(long).count("x") == 1_000_000


def test_threads_have_budgets_of_their_own(monkeypatch):
    """A server renders for several clients at once."""
    monkeypatch.setattr(sandbox, "_MOST_WORK", 300_000)
    template, failures = Template(LOOP * 2 + END * 2), []

    def render():
        try:
            template.render(HI)
        except EngineError as error:
            failures.append(str(error))

    threads = [threading.Thread(target=render) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert 2 == len(failures)
    assert "too much" in failures[0]
