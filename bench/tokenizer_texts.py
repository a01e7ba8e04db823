"""Texts that are hard to split: what the tests' tokenizers are held against each other with."""

import random
from collections.abc import Sequence

from gemcut.demo.text import training_sources

N_TEXTS = 1000

# Words and signs of many scripts, in composed and decomposed form, with marks of several kinds.
WORDS = """\
the quick don't I'LL we've You'RE it's 'S o'clock camelCase HTTPServer XMLHttpRequest
snake_case __init__ naïve café cafe\u0301 Ångström A\u030angstro\u0308m Straße İstanbul
ǅungla ŒUVRE œuvre Ελληνικά ΩΜΈΓΑ русский ЁЖ Українська עברית שָׁלוֹם العربية مَرْحَبًا
हिन्दी नमस्ते বাংলা தமிழ் ภาษาไทย ที่นี่ ລາວ မြန်မာ ខ្មែរ 한국어 안녕하세요 日本語 ひらがな
カタカナ ｶﾀｶﾅ ー 漢字 中文 测试 東京タワー々〆 ㄅㄆㄇ ተማሪ ქართული ᲥᲐᲠᲗᲣᲚᲘ Հայերեն ᏣᎳᎩ ꮳꮃꭹ
ᠮᠣᠩᠭᠣᠯ 𐐀𐐁𐐨𐐩 𝒜𝓫𝔠 ℝℂ K Ω ﬁn ﬀ Ａｂｃ ø ö ú ÿ õ ÷ û ý À ù Á þ ü ñ ç 😀 👩‍👩‍👧‍👦 🇩🇪🇯🇵 👍🏽 ☃️
❤ © ™ € £ ¥ ½ ² ³ Ⅷ ① ५६७ ١٢٣ ７８９ 一二三 〇 … — – ‘’ “” « » ¿ ¡ § † • ‰
、。「」！？：；，（） ～ ￥ 〰 ︰﹏ \u200b \u200d \ufeff \u00ad x\u0300\u0301\u0302 \u0301
e\u0301\u0323 ¨ ^ ` ~ ´ ▁ ▁▁ Ġ Ċ ĉ <0x0A> [PAD660] <s> </s> <unk>
""".split()
SIGNS = (
    list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~") + "== != -> => ... // /* */ :: ## !!! ''' ()".split()
)
SPACES = (
    " |  |   |    |        |\t|\t\t| \t|\n|\n\n|\n\n\n|\r\n|\r|\n  |  \n| \n \n"
    "|\u00a0|\u3000|\u2003|\x0b|\x85|\u2028"
).split("|")
DIGITS = "0 7 12 42 123 2024 65535 1234567 3.14159 1,000,000 0x1F 1e-9 v2.0.1 192.168.0.1 00 x86_64"


def texts(names: Sequence[str], seed: int = 0) -> list[str]:
    """A list of distinct texts: code, words of many scripts, spaces, digits, tokens' names.

    Args:
        names: special tokens to be mixed in.
    """
    rng = random.Random(seed)
    modules = [source for source in training_sources() if len(source) > 3000]
    found = dict.fromkeys(["", " ", "\n", "a", "▁", "'", "\x00", "\x7f", *WORDS, *SIGNS, *names])
    makers = [_code, _mixture, _mixture, _letters, _spaced, _names, _characters]
    while len(found) < N_TEXTS:
        found[rng.choice(makers)(rng, modules, names)] = None
    return list(found)[:N_TEXTS]


def _code(rng: random.Random, modules: Sequence[str], names: Sequence[str]) -> str:
    """A piece of a module, cut anywhere."""
    source = rng.choice(modules)
    start = rng.randrange(len(source) - 100)
    return source[start : start + rng.randrange(1, 60)]


def _mixture(rng: random.Random, modules: Sequence[str], names: Sequence[str]) -> str:
    """Words, signs, digits and spaces in a row."""
    pools = [WORDS, WORDS, SIGNS, SPACES, [" "], DIGITS.split()]
    return "".join(rng.choice(rng.choice(pools)) for _ in range(rng.randrange(1, 8)))


def _letters(rng: random.Random, modules: Sequence[str], names: Sequence[str]) -> str:
    """Words with their letters' case changed, with endings and digits."""
    ends = ["'s", "'T", "'re", "'VE", "'m", "'Ll", "'d", "s", "", "42", "'"]
    word = rng.choice(WORDS)
    change = rng.choice([str.upper, str.lower, str.title, str.swapcase])
    return rng.choice(["", " ", "_", "\n"]) + change(word) + rng.choice(ends) + rng.choice(ends)


def _spaced(rng: random.Random, modules: Sequence[str], names: Sequence[str]) -> str:
    """Runs of white space between and around words."""
    parts = [rng.choice([*WORDS, "", "x", "1", "."]) for _ in range(rng.randrange(1, 4))]
    runs = ["".join(rng.choices(SPACES, k=rng.randrange(4))) for _ in range(4)]
    return runs[0] + "".join(part + run for part, run in zip(parts, runs[1:], strict=False))


def _names(rng: random.Random, modules: Sequence[str], names: Sequence[str]) -> str:
    """Special tokens in a text."""
    parts = [rng.choice(names), rng.choice(WORDS), rng.choice([" ", "\n", "x"]), rng.choice(names)]
    return "".join(rng.sample(parts, rng.randrange(1, 5)))


def _characters(rng: random.Random, modules: Sequence[str], names: Sequence[str]) -> str:
    """Any characters of some script."""
    start = rng.choice([0x20, 0xA0, 0x370, 0x900, 0x2000, 0x3040, 0x4E00, 0xAC00, 0x1F600, 0x10400])
    return "".join(chr(start + rng.randrange(0x70)) for _ in range(rng.randrange(1, 6)))
