"""`gemcut rpc-server`."""

import os
import signal
import sys
from threading import Thread

import click

from gemcut.cli.common import say, threads

_LOOPBACK = "127.0.0.1"
_TRUST = (
    "WARNING: {host} can be reached from outside. llama.cpp calls this protocol insecure and wants "
    "it on no open network: nothing is encrypted or authenticated, and whoever connects can run "
    "what they like on these devices and read what is in them"
)


@click.command("rpc-server")
@click.option("--host", default=_LOOPBACK, show_default=True, help="IPv4 address to listen on")
@click.option("--port", type=click.IntRange(1, 65535), default=50052, show_default=True)
@click.option("--device", "names", multiple=True, help="to offer; repeat. default: GPUs, else CPU")
@threads
def command(host: str, port: int, names: tuple[str, ...], threads: int | None) -> None:
    """Lend this machine's devices to gemcut or llama.cpp on another one, until Ctrl-C.

    There, --rpc HOST:PORT uses them like GPUs, one client at a time. The two must be of the same
    version.
    """
    from gemcut.cores import default_threads
    from gemcut.runtime.machine.profiles import card_names

    names = names or tuple(card_names()) or ("CPU",)
    if not host.startswith("127."):
        say(_TRUST.format(host=host))
    _serve(f"{host}:{port}", threads or default_threads(), names)


def _serve(endpoint: str, threads: int, names: tuple[str, ...]) -> None:
    """Serve in a thread: while C waits for clients, Python must hear of signals."""
    from gemcut.llama import serve_rpc

    failures: list[Exception] = []

    def serve() -> None:
        try:
            serve_rpc(endpoint, threads, names)
        except Exception as error:
            failures.append(error)

    served = Thread(target=serve, daemon=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        served.start()
        served.join()
    except KeyboardInterrupt:
        say("stopped")
        sys.stdout.flush()
        os._exit(0)  # at once: ggml must not be torn down under a client that is being served
    raise failures[0]
