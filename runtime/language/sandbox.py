"""Jinja for templates from anywhere: what they may touch, and how much work and memory they get.

Jinja's own sandbox keeps a template from the process's insides, but not from loops in loops, texts
that double with every line, or `"a" * 10**10`. So every iteration, call, text and list is counted
against a budget, and what could take much in a single step is checked before or not offered. Lists
that hold a list twice, which holds another twice, are as large as what they would be written out:
no such value is made, or whatever writes, compares or hashes it would hardly end.
"""

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

_MOST_WORK = 4_000_000  # steps of a rendering; 16 characters or items are one, too
_MOST_SIZE = 1 << 22  # characters of a text, items of a list
_MOST_WEIGHT = 1 << 26  # characters of a value if all of it is written out; an item is 16
_PER_STEP = 16
_PER_GLANCE = 1024  # characters that a comparison of texts passes in a step
_FEW = 16  # items, which are weighed anew each time
_PER_CALL = 8  # steps that a call takes
_HOLDING = (list, tuple, dict)
_SIZED = (str, bytes, *_HOLDING)
_COMPARING = ("dictsort", "groupby", "max", "min", "sort", "unique", "index", "count")
_FILTERS = (
    "abs capitalize count d default dictsort e escape first float forceescape format groupby int "
    "indent items join last length list lower map max min reject rejectattr replace reverse round "
    "safe select selectattr sort string striptags sum title trim truncate unique upper wordcount"
).split()
_METHODS = frozenset("center expandtabs format_map ljust rjust translate zfill".split())
_WIDE = re.compile(r"\d{4}|\*|\{[^}]*\{")  # a width in a format, or one that comes from elsewhere


class TooMuch(TemplateError):
    """A template does more than it may."""


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with a budget, which `budget` starts anew in each thread."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        extensions = ["jinja2.ext.loopcontrols", _Generation]
        # What is constant would be worked out while compiling, time after time, if optimized.
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=extensions, optimized=False
        )
        self._left = threading.local()
        self.concat = self.joined_all  # type: ignore[method-assign]
        self.filters = {name: self._counted(name, self.filters[name]) for name in _FILTERS}
        tests: dict[str, Any] = dict(self.tests)
        self.tests = {name: self._watched(test) for name, test in tests.items()}
        self.globals["namespace"] = _Namespace
        del self.globals["lipsum"]

    def budget(self) -> None:
        """Begin to count."""
        self._left.work = _MOST_WORK
        self._left.weights = {}

    def add_filter(self, name: str, filter_: Callable[..., Any]) -> None:
        """Offer one more filter, which counts what it makes, too."""
        self.filters[name] = lambda *args, **kwargs: self._spend(filter_(*args, **kwargs))

    def _spend(self, made: Any = None) -> Any:
        """Count one step and the size of what it made, which is returned."""
        size = len(made) if isinstance(made, _SIZED) else 0
        self._check_size(size)
        self._weighed(made)
        self._left.work -= 1 + size // _PER_STEP
        if self._left.work < 0:
            raise TooMuch("it does too much: a loop that hardly ends, or texts without end")
        return made

    def _check_size(self, size: int) -> None:
        if size > _MOST_SIZE:
            raise TooMuch(f"it makes a text or list of more than {_MOST_SIZE}")

    def _weighed(self, *values: Any) -> int:
        """The weight of some values. Raises TooMuch."""
        if (weight := sum(map(self._weight, values))) > _MOST_WEIGHT:
            raise TooMuch(f"it makes a value that is written in more than {_MOST_WEIGHT} letters")
        return weight

    def _weight(self, value: Any) -> int:
        """Of a value, whatever stands in it twice counted twice; nothing changes it later."""
        if isinstance(value, str | bytes):
            return len(value)
        if not isinstance(value, _HOLDING):
            return 0
        if known := self._left.weights.get(id(value)):
            return int(known[1])
        held = [*value, *value.values()] if isinstance(value, dict) else value
        weight = sum(_PER_STEP + self._weight(each) for each in held)
        if len(held) > _FEW or any(isinstance(each, _HOLDING) for each in held):
            self._left.weights[id(value)] = value, weight  # held on to: its identity stays its own
            self._left.work -= _PER_STEP
        return weight

    # --- what compiled templates call in place of Python's own ---

    def counted(self, items: Iterable[Any]) -> Iterator[Any]:
        """What a loop goes through."""
        left = self._left
        for item in items:
            left.work -= 1
            if left.work < 0:
                self._spend()
            yield item

    def joined(self, *parts: Any) -> str:
        """Texts next to each other: `~`."""
        return self.joined_all(map(str, parts))

    def joined_all(self, parts: Iterable[str]) -> str:
        """Texts one after another: what a template, a macro or a block writes."""
        found, size = [], 0
        for part in parts:
            size += len(part)
            self._check_size(size)
            found.append(part)
        return str(self._spend("".join(found)))

    def spent(self, made: Any) -> Any:
        """A list, or a part of something."""
        return self._spend(made)

    def compared(self, value: Any) -> Any:
        """What is compared or looked up next, which goes through all of it."""
        per_step = _PER_STEP if isinstance(value, _HOLDING) else _PER_GLANCE
        self._left.work -= 1 + self._weighed(value) // per_step
        self._spend()
        return value

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """+, *, ** and %, which can make much of little."""
        sizes = [len(each) for each in (left, right) if isinstance(each, str | list | tuple)]
        numbers = [each for each in (left, right) if isinstance(each, int)]
        if operator == "+":
            self._check_size(sum(sizes))
        elif operator == "*" and sizes and numbers:
            self._check_size(sizes[0] * max(numbers[0], 0))
        elif operator in ("*", "**"):
            self._check_size(_bits(left) * (_bits(right) if operator == "*" else abs(right)))
        elif isinstance(left, str) and _WIDE.search(left):
            raise TemplateError("it formats with a width")
        return self._spend(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Any call; methods of texts first."""
        of = getattr(__obj, "__self__", None)
        if isinstance(of, str):
            __self._check_method(getattr(__obj, "__name__", ""), of, args)
        __self._left.work -= _PER_CALL
        __self._weighed(*args, *kwargs.values())
        if __obj is dict or (of and getattr(__obj, "__name__", "") in _COMPARING):
            __self.compared([of, *args])
        return __self._spend(super().call(__context, __obj, *args, **kwargs))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """As Jinja has it, without the methods that pad a text."""
        padding = isinstance(obj, str) and attr in _METHODS
        return not padding and super().is_safe_attribute(obj, attr, value)

    def _check_method(self, name: str, of: str, args: tuple[Any, ...]) -> None:
        if name in ("format", "format_map") and _WIDE.search(of):
            raise TemplateError("it formats with a width")
        if name == "replace" and len(args) > 1 and isinstance(args[1], str):
            self._check_size(_replaced(of, str(args[0]), args[1]))
        if name == "join" and args and isinstance(args[0], list | tuple):
            self._check_size(len(of) * len(args[0]) + sum(len(str(each)) for each in args[0]))

    def _counted(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that counts what it makes."""

        @wraps(original)
        def counted(*args: Any, **kwargs: Any) -> Any:
            # Filters that are handed the context or the like have the value after it.
            value, *rest = args[1:] if hasattr(original, "jinja_pass_arg") else args
            if name == "replace" and len(rest) > 1:
                self._check_size(_replaced(str(value), str(rest[0]), str(rest[1])))
            if name == "join" and isinstance(value, list | tuple):
                separator = str(rest[0]) if rest else str(kwargs.get("d", ""))
                self._check_size(
                    len(separator) * len(value) + sum(len(str(each)) for each in value)
                )
            if name == "format" and _WIDE.search(str(value)):
                raise TemplateError("it formats with a width")
            if any(isinstance(each, int) and each > 1000 for each in (*rest, *kwargs.values())):
                raise TemplateError(f"its filter {name} is given a large number")
            if name in _COMPARING:
                self.compared(value)
            return self._spend(original(*args, **kwargs))

        return counted

    def _watched(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """A test, which may compare what it is given."""

        @wraps(original)
        def watched(*args: Any) -> Any:
            for each in args:
                self.compared(each)
            return original(*args)

        return watched

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        """Compile the parsed template, with calls of ours where it would make something."""
        _Counting(self).visit(source)
        return super()._generate(source, *args, **kwargs)


class _Counting(NodeTransformer):
    """Puts `Sandbox`'s methods in the places of loops, `~`, slices, lists and the like."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = self._call("counted", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._call("joined", *node.nodes)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            return self._call("spent", node)
        node.arg = self._compared(node.arg)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        self.generic_visit(node)
        node.key = self._compared(node.key)
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return self._call("spent", node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return self._call("spent", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return self._call("spent", node) if node.ctx == "load" else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = self._compared(node.expr)
        for operand in node.ops:
            operand.expr = self._compared(operand.expr)
        return node

    def _compared(self, node: nodes.Expr) -> nodes.Expr:
        """How large a constant is, the source says."""
        return node if isinstance(node, nodes.Const) else self._call("compared", node)

    def _call(self, name: str, *arguments: Any) -> nodes.Expr:
        call = nodes.Call(nodes.EnvironmentAttribute(name), list(arguments), [], None, None)
        call.set_lineno(arguments[0].lineno).set_environment(self._sandbox)
        return call


class _Namespace(Namespace):
    """Jinja's own, whose text is not that of what it holds: it alone can be changed."""

    def __repr__(self) -> str:
        return "<Namespace>"


class _Generation(Extension):
    """`{% generation %}`, which marks what a model is trained on: its contents, as they are."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _bits(number: Any) -> int:
    return number.bit_length() if isinstance(number, int) else 1


def _replaced(text: str, old: str, new: str) -> int:
    """The size of a text with one part of it replaced by another, at most."""
    return len(text) + (text.count(old) if old else len(text) + 1) * max(len(new) - len(old), 0)
