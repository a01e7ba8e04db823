"""What `run`, `serve` and `bench` share: the options of a run, and how one is opened.

    @placement_options            # or @placement_options(parallel=4)
    def command(wanted: Wanted, ...):
        with wanted.open(path, on_progress) as run:
            ...

What is not said is planned.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any

import click

from gemcut.cli.common import SIZE, say
from gemcut.cli.flags import FLAGS, given_of
from gemcut.cli.planning import working
from gemcut.cli.titled import titled
from gemcut.errors import UsageError
from gemcut.sizes import parse_size

if TYPE_CHECKING:  # the library is loaded when the command runs
    from gemcut.profile import Profile
    from gemcut.runtime.loading.loading import Loaded
    from gemcut.runtime.placement.given import Given
    from gemcut.runtime.placement.workload import Workload

Command = Callable[..., Any]
_PATIENCE = 3.0  # seconds without a word

# What is planned for, beside the flags.
_MACHINE = (
    click.option("--workload", metavar="chat|long|batch|P:A", help="tokens read and written"),
    click.option("--vram", metavar="A,B", help="of each card: 12G (default: this machine's)"),
    click.option("--ram", type=SIZE, help="of the host (default: this machine's)"),
    click.option("--machine", help="plan for a rtx-4070+ddr5-5600, or a machine.json"),
)


@dataclass(frozen=True)
class Wanted:
    """What was said of a run, and of the machine and the requests that it is for."""

    given: "Given"
    workload: "Workload"
    vram: tuple[int, ...] | None = None
    ram: int | None = None
    machine: str | None = None

    def profile(self) -> "Profile":
        """The machine that was described; what was not is this one's.

        Raises:
            UsageError: an unknown name, or limits that leave nothing.
            ProfileError: a file that is no profile.
            EngineError: llama.cpp is missing, or a device does not answer.
        """
        from gemcut import api

        for endpoint in self.given.rpc:
            _join(endpoint)
        with working("measuring this machine"):
            return api.machine_for(self.given, self.machine, self.vram, self.ram)

    def open(self, path: Path, on_progress: Callable[[float], None]) -> "Loaded":
        """The run of a file, loaded; what was made smaller is said.

        Args:
            on_progress: told the fraction loaded.

        Raises:
            as `profile` and `gemcut.api.open_run`.
        """
        from gemcut import api

        profile = self.profile()
        return api.open_run(path, self.given, self.workload, profile, say, on_progress)


def _join(endpoint: str) -> None:
    """Add an RPC server's devices; where it keeps us waiting, say so."""
    from gemcut.llama import add_rpc

    waiting = f"waiting for {endpoint}, which serves one client at a time"
    patience = Timer(_PATIENCE, say, [waiting])
    patience.daemon = True
    patience.start()
    try:
        add_rpc(endpoint)
    finally:
        patience.cancel()


def placement_options(command: Command | None = None, *, parallel: int = 1) -> Any:
    """The flags of a run; the command gets them as `wanted`.

    Args:
        parallel: sequences, unless said otherwise.
    """
    if command is None:
        return lambda each: placement_options(each, parallel=parallel)
    inner = command

    @wraps(inner)
    def bundled(**said: Any) -> Any:
        flags = {name: said.pop(name) for name, _, _ in FLAGS}
        machine = {name: said.pop(name) for name in ("workload", "vram", "ram", "machine")}
        return inner(wanted=_wanted(flags | {"n_seq": said.pop("n_seq")}, **machine), **said)

    together = click.option(
        *("-np", "--parallel", "n_seq"),
        type=click.IntRange(1, 256),
        default=parallel,
        show_default=True,
        help="sequences at once, which share the context",
    )
    flags = (click.option(*words, name, **settings) for name, words, settings in FLAGS)
    of_machine = titled("What it is planned for", *_MACHINE)
    return titled("How it runs (what is not said is planned)", *flags, together)(
        of_machine(bundled)
    )


def _wanted(
    flags: Mapping[str, Any],
    workload: str | None,
    vram: str | None,
    ram: int | None,
    machine: str | None,
) -> Wanted:
    from gemcut.runtime.placement.workload import CHAT, parse_workload

    if ram == 0:
        raise UsageError("--ram 0: a run needs some memory of the host")
    return Wanted(
        given_of(flags),
        parse_workload(workload) if workload else CHAT,
        tuple(parse_size(word) for word in vram.split(",")) if vram else None,
        ram,
        machine,
    )
