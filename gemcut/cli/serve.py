"""`gemcut serve`."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemcut.cli.common import FILE, hub_options, local_gguf, say, stages
from gemcut.cli.outline import show_placement
from gemcut.cli.placing import Wanted, placement_options
from gemcut.cli.titled import Titled
from gemcut.errors import UsageError

if TYPE_CHECKING:  # the library is loaded when the command runs
    from gemcut.runtime.placement.given import Given
    from gemcut.runtime.server.service import Service

_INSTALL = "the server needs FastAPI and uvicorn: pip install 'gemcut[serve]'"
_placement: Callable[[Callable[..., Any]], Callable[..., Any]] = placement_options(parallel=4)


@click.command("serve", cls=Titled)
@click.argument("model", type=FILE)
@click.option("--host", default="127.0.0.1", show_default=True, help="address to listen on")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True)
@click.option("--api-key", envvar="GEMCUT_API_KEY", help="clients must know it; or GEMCUT_API_KEY")
@click.option("--api-key-file", type=FILE, help="a file with such keys, one a line")
@click.option("--cors", multiple=True, help="a site whose pages may ask, https://NAME; repeat")
@click.option("--alias", help="the model's name for clients; default: the file's")
@click.option(
    "--queue",
    type=click.IntRange(0, 10_000),
    default=64,
    show_default=True,
    help="answers that may wait; beyond them clients are told to come again",
)
@click.option(
    "--timeout",
    type=click.FloatRange(1, 1e6),
    default=3600,
    show_default=True,
    help="seconds that an answer may take, waiting included",
)
@click.option(
    "--grace",
    type=click.FloatRange(0, 1e6),
    default=10,
    show_default=True,
    help="seconds that answers have to end when the server is told to",
)
@click.option(
    "--outputs",
    type=click.IntRange(1),
    help="tokens of a prompt whose probabilities are computed at once, for echo with logprobs; "
    "each takes a row of the vocabulary in memory (default: one a sequence)",
)
@click.option("--think/--no-think", default=None, help="where a request says nothing")
@click.option("--no-page", is_flag=True, help="no page to chat on at /")
@hub_options
@_placement
def command(
    model: Path, wanted: Wanted, revision: str | None, offline: bool, **options: Any
) -> None:
    """Serve a GGUF over HTTP, as OpenAI's API, until Ctrl-C.

    MODEL is a file, or owner/repo:file on the Hub. Only this machine can ask, unless --host says
    otherwise, which needs a key. There is a page to chat on at /.
    """
    try:
        from gemcut.runtime.server.app import Access, make_app
        from gemcut.runtime.server.serving import Listener, bind, url
    except ModuleNotFoundError as error:
        raise UsageError(f"{_INSTALL} ({error.name} is missing)") from error
    keys = tuple(keys_of(options["api_key"], options["api_key_file"]))
    with ExitStack() as stack:
        bound = stack.enter_context(bind(options["host"], options["port"], bool(keys)))
        wanted = with_outputs(wanted, options["outputs"])
        service = _service(local_gguf(model, revision, offline), wanted, options, stack)
        app = make_app(service, Access(keys, options["cors"], page=not options["no_page"]))
        say(f"{service.name} answers at {url(bound)}; Ctrl-C ends it")
        Listener(app, service, options["grace"]).run(sockets=[bound])
        say("ended")


def keys_of(key: str | None, file: Path | None) -> Iterator[str]:
    """The keys that open. Raises UsageError for one that no header could carry."""
    lines = [] if key is None else [key]
    if file is not None:
        lines += [line for line in file.read_text("utf-8", "replace").splitlines() if line.strip()]
        if not lines:
            raise UsageError(f"{file}: no key in it")
    for each in lines:
        if not (each.strip() and each.isascii() and each.isprintable()):
            raise UsageError("an API key is empty or has characters beyond printable ASCII")
        yield each.strip()


def with_outputs(wanted: Wanted, outputs: int | None) -> Wanted:
    """With so many, but no fewer than there are sequences."""
    if outputs is None:
        return wanted
    given = replace(wanted.given, n_outputs=max(outputs, wanted.given.n_seq))
    return replace(wanted, given=given)


def _service(path: Path, wanted: Wanted, options: dict[str, Any], stack: ExitStack) -> "Service":
    """The model, loaded; closed with the stack."""
    from gemcut.llama.embedder import makes_vectors
    from gemcut.runtime.loading.loading import open_parts
    from gemcut.runtime.server.service import Service

    name = options["alias"] or path.name.removesuffix(".gguf")
    shared = {"timeout": options["timeout"], "think": options["think"]}
    with open_parts(path) as file:
        makes = makes_vectors(file.metadata)
    if makes:
        return Service(name, **_vectors(path, wanted.given, stack), **shared)
    return Service(name, **_texts(path, wanted, options["queue"], stack), **shared)


def _texts(path: Path, wanted: Wanted, queue: int, stack: ExitStack) -> dict[str, Any]:
    """What a model that writes is to a service."""
    from gemcut.runtime.batching.scheduler import Scheduler
    from gemcut.runtime.server.service import conversation_limit

    with stages() as told:
        run = wanted.open(path, lambda done: told("loading", round(100 * done), 100))
    stack.enter_context(run)
    show_placement(run.placement)
    return {
        "model": run.model,
        "n_ctx": conversation_limit(run.context),
        "scheduler": stack.enter_context(Scheduler(run.context, queue)),
        "record": run.recorder.take,
    }


def _vectors(path: Path, given: "Given", stack: ExitStack) -> dict[str, Any]:
    """What a model for embeddings is to a service. They are small: nothing is planned for them."""
    from gemcut.engine import ModelOptions
    from gemcut.llama import Model
    from gemcut.llama.embedder import Embedder
    from gemcut.runtime.server.vectors import Vectors

    layers = -1 if given.gpu_layers is None else given.gpu_layers
    options = ModelOptions(layers, given.overrides, given.devices, given.rpc)
    model = stack.enter_context(Model.load(path, options))
    embedder = Embedder(model, given.n_ctx, given.threads)
    vectors = stack.enter_context(Vectors(model, embedder))
    return {"model": model, "n_ctx": embedder.n_ctx, "vectors": vectors}
