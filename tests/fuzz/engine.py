"""Targets that llama.cpp gets to see: model files, caches, grammars, tokens."""

import shutil
from pathlib import Path

from gemcut.engine import ContextOptions, ModelOptions, Sampling
from gemcut.errors import EngineError, GemcutError
from gemcut.gguf_parts import GGUFParts
from gemcut.llama import Context, Model
from gemcut.llama.sampler import Sampler
from gemcut.runtime.chat.chat import recommended_sampling
from gemcut.runtime.language.prompt import open_template
from gemcut.runtime.loading.loading import open_parts
from gemcut.runtime.machine.cards import named
from gemcut.runtime.placement.placement import plan_run
from tests.fuzz import seeds
from tests.fuzz.headers import GGUF
from tests.fuzz.mutate import BYTES, words
from tests.fuzz.target import Run, Target, on_file

_OPTIONS = ContextOptions(n_ctx=64, n_batch=64, n_ubatch=64, threads=1)


def _load(path: Path) -> None:
    """The way of `gemcut run`: looked at, loaded, spoken to."""
    with open_parts(path):
        pass
    with Model.load(path, ModelOptions(gpu_layers=0)) as model:
        _talk(model)


def _talk(model: Model) -> None:
    tokens = model.tokenize("def f(x): return x")[:32]
    b"".join(model.piece(int(token)) for token in tokens)
    if template := open_template(model):
        template.render([{"role": "user", "content": "x"}])
    sampling = recommended_sampling(model)
    with Context(model, _OPTIONS) as context:
        context.decode(tokens)
        with Sampler(model, sampling) as sampler:
            context.decode([sampler.sample(context)], start=len(tokens))


def _vocabulary(path: Path) -> None:
    """The way of `eval`, which reads the tokenizer first."""
    with Model.load(path, ModelOptions(vocab_only=True)) as model:
        for text in ("a b\n", "naïve 日本 🙂", "<bos>x<eos>", "\0", " " * 50):
            for token in model.tokenize(text, parse_special=True):
                model.piece(int(token), special=True)
                model.is_end(int(token))


def _experts(folder: Path) -> Run:
    """A file with types per expert, for which a library of gemcut's own is there."""
    seeds.experts_library()
    return on_file("x.gguf", _load)(folder)


def _part(folder: Path) -> Run:
    for path in seeds.split():
        shutil.copy(path, folder / path.name)

    def run(data: bytes) -> None:
        (folder / seeds.split()[1].name).write_bytes(data)
        _load(folder / seeds.split()[0].name)

    return run


def _planned(path: Path) -> None:
    """A run that is planned, on a machine with a card."""
    with GGUFParts(path) as file:
        plan_run(file, named("rtx-4090"), probe=lambda *arguments: _unknown())


def _unknown() -> object:
    raise EngineError("an architecture whose caches are not known")


def _session(folder: Path) -> Run:
    """A saved cache that somebody changed."""
    model = Model.load(seeds.q4_k_m())
    context = Context(model, _OPTIONS)
    seeds.session(model, folder / "good.kv")
    good = (folder / "good.kv").read_bytes()

    def run(data: bytes) -> None:
        (folder / "x.kv").write_bytes(good if data == b"good" else data)
        try:
            context.restore(folder / "x.kv", 0)
        except GemcutError:
            if data == b"good":
                raise

    return run


def _sessions() -> list[bytes]:
    def make(path: Path) -> None:
        with Model.load(seeds.q4_k_m()) as model:
            seeds.session(model, path)

    return [b"good", *seeds.read(seeds.made("cache.kv", make))]


def _grammar(folder: Path) -> Run:
    """A grammar that passed our check, at work in llama.cpp."""
    model = Model.load(seeds.q4_k_m())
    context = Context(model, _OPTIONS)
    context.decode(model.tokenize("x = "))

    def run(data: bytes) -> None:
        sampling = Sampling(seed=1, grammar=data.decode("utf-8", "surrogateescape"))
        with Sampler(model, sampling) as sampler:
            sampler.sample(context)

    return run


TARGETS = (
    Target(
        "load",
        lambda: seeds.read(seeds.q4_k_m(), seeds.mixtral()),
        GGUF,
        on_file("x.gguf", _load),
        True,
    ),
    Target(
        "load-vocabulary",
        lambda: seeds.read(seeds.mixtral(), seeds.q4_k_m()),
        GGUF,
        on_file("x.gguf", _vocabulary),
        True,
    ),
    Target("load-per-expert", lambda: seeds.read(seeds.per_expert_file()), GGUF, _experts, True),
    Target("load-part", lambda: seeds.read(seeds.split()[1]), GGUF, _part, True),
    Target(
        "placement",
        lambda: seeds.read(seeds.q4_k_m(), seeds.mixtral()),
        GGUF,
        on_file("x.gguf", _planned),
    ),
    Target("session", _sessions, BYTES, _session),
    Target(
        "grammar",
        lambda: [b'root ::= "a" | [0-9]+ item{1,3}\nitem ::= "b" item? | "\\u00e4"\n'],
        words(
            "(", ")", "{1,9}", "*", "+", "?", "[^a]", "|", '""', " item ", "[\\x00-\\xff]", "<[3]>"
        ),
        _grammar,
    ),
)
