"""What a user asks for: the same words on the command line and in a file."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemcut.errors import GemcutError, PlanError, UsageError
from gemcut.quantize.intent import CONTEXT, Intent, overriding, read_intent, understand

EVERYTHING = """
vram = ["12G", "24G"]
ram = "32GiB"
machine = "rtx-4070+ddr5-5600"
context = "16k"
kv = "q8_0"
cache-type-v = "q4_0"
parallel = 2
ubatch = 1024
bpw = 4.5
min-speed = 10
max-kld = 0.1
prefer = "quality"
types = ["q4_k", "q6_k"]
rules = ["blk.*.attn_*=q6_k", "blk.0.*=gpu0"]
plain = true

[floors]
experts = "Q4_K"
"""


def test_a_file_says_all_that_the_options_can(tmp_path):
    """Every name, once, with its unit."""
    path = tmp_path / "intent.toml"
    path.write_text(EVERYTHING)

    intent = understand(read_intent(path))

    request, context = intent.request, intent.options(trained=None)
    assert (intent.vram, intent.ram) == ((12 * 10**9, 24 * 10**9), 32 << 30)
    assert intent.machine == "rtx-4070+ddr5-5600"
    assert (context.n_ctx, context.n_seq, context.n_ubatch) == (16384, 2, 1024)
    assert (context.type_k, context.type_v, context.n_outputs) == ("q8_0", "q4_0", 2)
    assert (request.bpw, request.min_speed, request.max_kld) == (4.5, 10, 0.1)
    assert (request.prefer, request.types, request.plain) == ("quality", ("q4_k", "q6_k"), True)
    assert [str(rule) for rule in request.rules] == ["blk.*.attn_*=q6_k", "blk.0.*=gpu0"]
    assert request.floors == {"experts": "q4_k"}


def test_nothing_said_is_nothing_asked_for():
    """The defaults are those of llama.cpp, but for a context that one can work in."""
    intent = understand(dict.fromkeys(["vram", "size", "types"]))

    assert intent == Intent()
    assert not intent.of_a_machine
    assert intent.options(trained=None).n_ctx == CONTEXT
    assert intent.options(trained=4096).n_ctx == 4096
    assert intent.options(trained=1 << 20).n_ctx == CONTEXT


def test_sizes_are_text_or_bytes():
    """One card or several, as a text with commas, a list, or a plain number."""
    for raw in ("12G", ["12G"], 12_000_000_000, [12_000_000_000]):
        assert understand({"vram": raw}).vram == (12_000_000_000,)
    assert understand({"vram": "12G,8G"}).vram == (12_000_000_000, 8_000_000_000)
    assert understand({"ram": 0}).ram == understand({"ram": "0"}).ram == 0


def test_types_are_a_list_or_a_word():
    """ "all" lifts the limits, "default" is what nothing said means."""
    assert understand({"types": "all"}).request.all_types
    assert understand({"types": "default"}).request == understand({}).request
    assert understand({"types": "Q4_K, q6_k"}).request.types == ("q4_k", "q6_k")


def test_options_win_over_the_file():
    """What is said anew replaces it; so does another word for the same thing."""
    file = {"size": "14G", "cache-type-k": "f16", "ram": "32G", "rules": ["a=q4_k"]}

    assert overriding(file, {"ram": "64G", "context": None}) == file | {"ram": "64G"}
    assert overriding(file, {"bpw": 4.5}) == {k: v for k, v in file.items() if k != "size"} | {
        "bpw": 4.5
    }
    assert "cache-type-k" not in overriding(file, {"kv": "q8_0"})
    assert overriding({"kv": "q8_0"}, {"cache-type-k": "f16"}) == {
        "kv": "q8_0",
        "cache-type-k": "f16",
    }
    assert overriding(file, {"rules": ["b=q6_k"]})["rules"] == ["b=q6_k"]


WRONG = [
    ({"vrm": "12G"}, "'vrm' cannot be asked for; known are vram, ram, machine"),
    ({"vram": "12GG"}, "vram: '12GG' is not a size"),
    ({"vram": "0"}, "vram is 0"),
    ({"vram": "12G,"}, "vram is ''"),
    ({"vram": []}, "vram is []: wanted a size for every card"),
    ({"vram": True}, "vram is True"),
    ({"ram": -1}, "ram is -1"),
    ({"ram": 1.5}, "ram is 1.5"),
    ({"size": 0}, "size is 0: wanted more"),
    ({"size": 10**400}, "size: '1000"),
    ({"ram": [10**400]}, "ram is [1000"),
    ({"size": "5M", "bpw": 4.5}, "two words for one thing"),
    ({"context": "0"}, "context is 0"),
    ({"context": "12G"}, "not a context length"),
    ({"context": "9999m"}, "context is 10484711424"),
    ({"parallel": 0}, "parallel is 0: wanted a whole number from 1"),
    ({"parallel": "two"}, "parallel is 'two'"),
    ({"ubatch": -512}, "ubatch is -512"),
    ({"kv": "q3_k"}, "kv is 'q3_k': llama.cpp keeps f32"),
    ({"bpw": -1.0}, "bpw is -1.0: wanted more than 0"),
    ({"bpw": "much"}, "bpw is 'much'"),
    ({"bpw": 10**400}, "bpw is 1000"),
    ({"min-speed": 0}, "min-speed is 0.0: wanted more than 0"),
    ({"max-kld": float("nan")}, "max-kld is nan"),
    ({"max-kld": float("inf")}, "max-kld is inf"),
    ({"prefer": "size"}, "prefer 'size': wanted speed, balance, quality"),
    ({"types": []}, "types"),
    ({"types": "q4_k,,q6_k"}, "types is ''"),
    ({"rules": "blk.*=q4_k"}, "rules is 'blk.*=q4_k': wanted a list"),
    ({"rules": ["blk.*"]}, "rule 'blk.*'"),
    ({"rules": ["blk.*=cpu,gpu0"]}, "wanted one place"),
    ({"rules": ["blk.*=gpux"]}, "rule"),
    ({"floors": {"expert": "q4_k"}}, "floor of 'expert': no such role"),
    ({"floors": ["experts=q4_k"]}, "floors is"),
    ({"plain": "yes"}, "plain is 'yes'"),
    ({"machine": 5}, "machine is 5"),
]


@pytest.mark.parametrize(("said", "line"), WRONG, ids=[line for _, line in WRONG])
def test_what_cannot_be_meant_is_refused(said, line):
    """The line names the word and what would do."""
    with pytest.raises(UsageError) as error:
        understand(said)
    assert line in str(error.value)


@pytest.mark.parametrize(
    "said", [{"types": "q4_k,q9"}, {"rules": ["x=q9"]}, {"floors": {"experts": "q9"}}]
)
def test_unknown_types_are_refused(said):
    """ggml's are listed."""
    with pytest.raises(PlanError, match="unknown type 'q9'; ggml has"):
        understand(said)


@pytest.mark.parametrize(
    "text", ["vram = ", "vram = '1G'\nvram = '2G'", "a" * 100, "\0", "[" * 9999]
)
def test_a_file_that_is_no_toml_is_refused(tmp_path, text):
    """With its name."""
    path = tmp_path / "intent.toml"
    path.write_text(text)

    with pytest.raises(UsageError, match=r"intent\.toml: not TOML"):
        read_intent(path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    """None there, a folder, or no text."""
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name in ("missing", ".", "binary"):
        with pytest.raises(UsageError):
            read_intent(tmp_path / name)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["12G", "q4_k", "blk.*=q4_k", "balance"]),
)
NAMES = st.sampled_from(
    "vram ram machine context kv cache-type-k parallel ubatch size bpw min-speed max-kld prefer "
    "types rules floors plain".split()
)


@given(
    st.dictionaries(
        NAMES,
        st.one_of(VALUES, st.lists(VALUES, max_size=3), st.dictionaries(st.text(), VALUES)),
    )
)
def test_whatever_is_said_is_understood_or_refused(said):
    """Nothing but a GemcutError escapes."""
    try:
        assert isinstance(understand(said), Intent)
    except GemcutError:
        pass
