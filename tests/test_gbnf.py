"""Grammars are checked before llama.cpp, which does not survive all of them, reads them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemcut.engine import Sampling
from gemcut.errors import UsageError
from gemcut.gbnf import check_grammar
from gemcut.llama import Sampler

GOOD = [
    'root ::= "a"',
    '# a comment\nroot ::= # another\n  item+ # and one\nitem ::= "x" | [a-z0-9-] | "y"\r\n',
    'root ::= ("a" | b)* "\\x41\\u00e9\\U0001F9FF\\n\\"" .\nb ::= [^\\]\\\\"-]{2,5} "c"{0,3}?',
    'root ::= "é" ( "a"\n | "b" ){3} ""\n\n',
    'root ::= "[" (root ("," root)*)? "]"',
]


@pytest.mark.parametrize("text", GOOD)
def test_what_is_valid_is_taken(model, text):
    """By the check and by llama.cpp."""
    Sampler(model, Sampling(grammar=text)).close()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no rule called root"),
        ('start ::= "a"', "no rule called root"),
        ("root ::= other", "root uses other, which is not defined"),
        ('root = "a"', "line 1, column 6: wanted ::="),
        ('root ::= "a', "ends within quotes"),
        ("root ::= [a", "ends within quotes"),
        ("root ::= []", "a set without characters"),
        ("root ::= [z-a]", "from high to low"),
        ('root ::= "\\q"', "no escape"),
        ('root ::= "\\u12"', "4 hexadecimal digits"),
        ('root ::= ("a"', "wanted \\) here"),
        ('root ::= "a")', "end of the line"),
        ('root ::= "a"\n  "b"', "line 2.*the name of a rule"),
        ("root ::= *", "nothing to repeat"),
        ('root ::= ""*', "nothing to repeat"),
        ('root ::= "a"{5,3}', "repeated 5 to 3 times"),
        ('root ::= "a"{99999999999999999999999}', "nine digits"),
        ('root ::= "a"{2,5000}', "wanted up to 2000"),
        ('root ::= ("a"{0,1000}){0,9}', "rules repeated 9 times"),
        ('root ::= "' + "a" * 999 + '"{2000}', "more than .* elements"),
        ("root ::= " + "(" * 200 + '"a"' + ")" * 200, "nested deeper"),
        ('root ::= "a"\nroot ::= "b"', "defined twice"),
        ("root ::= <think>", "tokens in grammars"),
        ('root ::= "a" !<[5]>', "tokens in grammars"),
        ('root ::= "a\0b"', "not valid"),
        ('root ::= "\ud800"', "not valid"),
        ("root ::= root", "can never end"),
        ('root ::= "a" root', "can never end"),
        ('root ::= root "a" | "b"', "begins with itself"),
        ('root ::= b\nb ::= c d | "x"\nc ::= e\ne ::= ""\nd ::= b "y"', "begins with itself"),
        ('root ::= ((("a"?))?)*', "begins with itself"),
        ("root ::= " + " | ".join('"a"' for _ in range(5000)), "5000 ways to begin"),
        (f'root ::= "{"a" * 600_000}"', "bytes, wanted at most"),
    ],
)
def test_what_is_wrong_is_said(text, why):
    """Where it is and what was wanted; also what llama.cpp would take and not survive."""
    with pytest.raises(UsageError, match=why):
        Sampling(grammar=text)


def test_rules_that_double_are_refused():
    """Thirty rules, a thousand million ways: llama.cpp would try each of them."""
    doubling = "\n".join(f"r{i} ::= r{i + 1} | r{i + 1}" for i in range(30))

    with pytest.raises(UsageError, match="ways to begin"):
        check_grammar(f'root ::= r0\n{doubling}\nr30 ::= "a"')
    chain = "\n".join(f"r{i} ::= r{i + 1}" for i in reversed(range(9000)))
    with pytest.raises(UsageError, match="rules to pass"):
        check_grammar(f'root ::= r0\n{chain}\nr9000 ::= "a"')


words = st.sampled_from(
    ['"a"', '"b c"', "[a-z]", "[^x]", ".", "root", "r2", "r3", "(", ")", "|", "*", "+", "?", "{2}"]
    + ["{1,3}", "{0,2}", "{0,}", "\n", "\nr2 ::=", "\nr3 ::=", '""', "#x", '"\\x', "é", "[]", "-"]
)


@settings(max_examples=300)
@given(st.lists(words, max_size=25).map(lambda found: "root ::= " + " ".join(found)))
def test_what_the_check_takes_llama_takes(model, text):
    """Any text is either refused or a grammar that llama.cpp can begin with."""
    try:
        sampling = Sampling(grammar=text)
    except UsageError:
        return
    Sampler(model, sampling).close()
