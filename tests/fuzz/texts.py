"""Targets that are texts: what is scored, tasks, grammars, templates, sizes and addresses."""

import json
from pathlib import Path

from gemcut.api.sweeping import parse_levels
from gemcut.artefact import parse
from gemcut.engine import read_memory
from gemcut.errors import EngineError, GemcutError, UsageError
from gemcut.eval.tasks.reading import read_task
from gemcut.eval.texts.reading import read_texts
from gemcut.gbnf import check_grammar
from gemcut.llama.devices import _split
from gemcut.quantize.request import parse_rule
from gemcut.runtime.language.grammar import schema_grammar
from gemcut.runtime.language.template import Template
from gemcut.runtime.language.tools import may_be_bare, read_bare_calls, read_calls
from gemcut.runtime.machine.cards import named
from gemcut.runtime.placement.workload import parse_workload
from gemcut.sizes import parse_context, parse_size
from tests.fuzz import seeds
from tests.fuzz.mutate import BYTES, JSON, words
from tests.fuzz.target import Target, on_file, on_text

_LINES = (
    {"text": "A text.", "id": "a", "domain": "x"},
    {"prompt": "What?", "id": 7},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
)
_TASKS = (
    b"context\n1\na\nb\nc\nd\n",
    b"1,The _ is here,cat,dog,2\n",
    b'{"question": "Q", "choices": ["a", "b"], "answer": 0, "domain": "d"}\n',
    b"\x01\0\0\0\x08\0\0\0"
    + b"\x01\0\0\0Q"
    + 2 * (b"\x02\0\0\0" + b"\x01\0\0\0a\x01\0\0\0b" + b"\x01\0\0\0\0\0\0\0"),
)
_GRAMMAR = rb"""root ::= "a" [^b-d\n]* (item | "x"){2,5} # remark
item ::= "\x41" | "\u00e4" item? | [0-9]+
"""
_SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "string", "pattern": "^[a-z]{1,3}\\d+$"},
        "e": {"type": "string", "minLength": 1, "maxLength": 9},
        "b": {"type": "array", "items": {"$ref": "#/$defs/n"}, "minItems": 1, "maxItems": 4},
        "c": {"enum": [1, "x", None]},
        "d": {"anyOf": [{"const": 1}, {"type": "boolean"}]},
    },
    "required": ["a"],
    "additionalProperties": False,
    "$defs": {"n": {"type": "integer", "minimum": -3, "exclusiveMaximum": 1000}},
}
_PATTERNS = words(
    "^",
    "$",
    "(a|b)*",
    "(?:x+)+",
    "\\d",
    "\\p{L}",
    "[^",
    "{0,99999}",
    "(?=",
    "\\1",
    "(?i)",
    "|",
    ".*",
)
_JINJA = words(
    *("{{", "}}", "{%", "%}", "{%- for m in messages %}", "{% endfor %}", "|join", "|tojson", "~"),
    *("range(10**9)", "'x' * 10**9", "messages * 10000", "{% set ns = namespace(a=1) %}", "**"),
    *(
        "messages.__class__",
        "().__class__.__mro__",
        "|attr('__init__')",
        "loop",
        "cycler",
        "lipsum",
    ),
    *(
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "'%s'|format",
        "{% if",
        "[::]",
        "|batch(1)",
    ),
    *(
        "|map",
        "|sort",
        "|center(10**9)",
        "|indent(10**8)",
        "self",
        "{% include 'x' %}",
        "strftime_now",
    ),
)
_CALLS = (
    b'{"name": "f", "arguments": {"a": [1, "x"]}}',
    b'[{"function": {"name": "f", "arguments": "{}"}}]',
    b"<function=f>\n<parameter=a>\n1\n</parameter>\n</function>",
    b"f<arg_key>a</arg_key><arg_value>1</arg_value>",
    b"call:f{a:<escape>x<escape>,b:[1,2]}",
    b'f[ARGS]{"a": 1}',
)
_CALL_WORDS = words(
    "<arg_key>", "</arg_key>", "<parameter=", "{", "[", "<escape>", '"', ":", "call:"
)
_LOG = b"""\
load_tensors:   CPU_Mapped model buffer size =  1918.35 MiB
llama_kv_cache: creating non-SWA KV cache, size = 4096 cells
llama_kv_cache: layer   0: dev = CPU
llama_kv_cache: size =   64.00 MiB ( 4096 cells,   8 layers,  1/1 seqs), K (f16):  32.00 MiB
sched_reserve:        CPU compute buffer size =   108.01 MiB
"""
_DIALOGUE = (
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hello"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}],
    },
    {"role": "tool", "content": "1", "tool_call_id": "x"},
)


def _template(source: str) -> None:
    Template(source, "<bos>", "<eos>").render([*_DIALOGUE[:2]])


def _dialogue(path: Path) -> None:
    """A conversation as a client may send it, in a good template."""
    template = Template((seeds.CHECKPOINT / "chat_template.jinja").read_text(), "<bos>", "<eos>")
    messages = _parsed(path)
    if isinstance(messages, list) and all(isinstance(each, dict) for each in messages):
        template.render(messages)


def _schema(path: Path) -> None:
    schema = _parsed(path)
    if isinstance(schema, (dict, bool)):
        check_grammar(schema_grammar(schema))


def _pattern(text: str) -> None:
    schema_grammar({"type": "string", "pattern": text})


def _parsed(path: Path) -> object:
    try:
        return parse(path.read_text("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        return None


def _calls(text: str) -> None:
    read_calls(text)
    read_bare_calls(text)
    may_be_bare(text)


def _words(text: str) -> None:
    """Every reader of a word on the command line; the text fits one of them at most."""
    refused = 0
    readers = (parse_size, parse_context, parse_workload, parse_rule, parse_levels, named, _split)
    for read in readers:
        try:
            read(text)
        except GemcutError:
            refused += 1
    if refused == len(readers):
        raise UsageError("no reader takes it")


def _log(text: str) -> None:
    if read_memory(text.split("\n")).outputs:
        raise EngineError("not of a context")


def _jsonl() -> list[bytes]:
    return [b"\n".join(json.dumps(line).encode() for line in _LINES), *seeds.in_json(*_LINES)]


TARGETS = (
    Target(
        "text",
        lambda: ["Ein Text.\nÄ\r\n".encode()],
        BYTES,
        on_file("x.txt", lambda p: read_texts([p])),
    ),
    Target("jsonl", _jsonl, JSON, on_file("x.jsonl", lambda p: read_texts([p]))),
    Target("tasks", lambda: _TASKS, (*BYTES, *JSON), on_file("x.bin", read_task)),
    Target(
        "gbnf",
        lambda: [_GRAMMAR],
        words(
            "(", ")", "{1,9}", "{", "*", "root ::= ", "[", "|", '""', "::=", "item ", "\\x", "\n"
        ),
        on_text(check_grammar),
    ),
    Target("schema", lambda: seeds.in_json(_SCHEMA), JSON, on_file("schema.json", _schema)),
    Target("pattern", lambda: [b"^[a-z]{1,3}\\d+(x|y)*$"], _PATTERNS, on_text(_pattern)),
    Target(
        "template",
        lambda: seeds.read(seeds.CHECKPOINT / "chat_template.jinja"),
        _JINJA,
        on_text(_template),
    ),
    Target(
        "dialogue",
        lambda: seeds.in_json(_DIALOGUE[:2], _DIALOGUE),
        JSON,
        on_file("d.json", _dialogue),
    ),
    Target("tool-calls", lambda: _CALLS, _CALL_WORDS, on_text(_calls)),
    Target(
        "words",
        lambda: [
            b"12G",
            b"32k",
            b"chat",
            b"4000:500",
            b"experts=q4_k",
            b"rtx-4090,64G",
            b"127.0.0.1:50052",
        ],
        words(
            "G", "iB", "k", ":", ".", "=", ",", "9", "-", "*", "rtx-4090", "ddr5-6000", "q4_k", "٣"
        ),
        on_text(_words),
    ),
    Target(
        "log", lambda: [_LOG], words("MiB", "size = ", "9", ".", "layer", "cells"), on_text(_log)
    ),
)
