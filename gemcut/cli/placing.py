"""What `run`, `serve` and `bench` share: llama.cpp's flags for a run, and showing what is planned.

    @placement_options            # or @placement_options(parallel=4)
    def command(wanted: Wanted, ...):
        with wanted.open(path, on_progress) as run:
            show_placement(run.placement)

What is not said is planned.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemcut.cli.common import CONTEXT, SIZE, say
from gemcut.cli.planning import working
from gemcut.cli.titled import titled
from gemcut.errors import UsageError
from gemcut.sizes import format_size, parse_size

if TYPE_CHECKING:  # the library is loaded when the command runs
    from gemcut.profile import Profile
    from gemcut.runtime.loading.loading import Loaded
    from gemcut.runtime.placement.given import Given
    from gemcut.runtime.placement.placement import Placement
    from gemcut.runtime.placement.workload import Workload
    from gemcut.runtime.speed.throughput import Speed

Command = Callable[..., Any]

_POSITIVE = click.IntRange(min=1)
_TYPE = {"metavar": "TYPE"}
# (name in `Given`, flags, settings of click)
_FLAGS: tuple[tuple[str, tuple[str, ...], dict[str, Any]], ...] = (
    ("n_ctx", ("-c", "--context", "--ctx-size"), {"type": CONTEXT, "help": "tokens, of all"}),
    ("type_k", ("-ctk", "--cache-type-k"), _TYPE | {"help": "of keys: f16, q8_0, ..."}),
    ("type_v", ("-ctv", "--cache-type-v"), _TYPE | {"help": "of values"}),
    ("n_batch", ("-b", "--batch-size"), {"type": _POSITIVE, "help": "tokens handed over at once"}),
    ("n_ubatch", ("-ub", "--ubatch-size"), {"type": _POSITIVE, "help": "tokens computed at once"}),
    ("gpu_layers", ("-ngl", "--gpu-layers"), {"metavar": "N|all", "help": "the last N on cards"}),
    ("n_cpu_moe", ("-ncmoe", "--n-cpu-moe"), {"type": click.IntRange(0), "metavar": "N"}),
    ("cpu_moe", ("-cmoe", "--cpu-moe"), {"is_flag": True, "help": "all experts on the host"}),
    ("overrides", ("-ot", "--override-tensor"), {"multiple": True, "metavar": "REGEX=DEVICE"}),
    ("tensor_split", ("-ts", "--tensor-split"), {"metavar": "A,B", "help": "shares of the cards"}),
    ("split_mode", ("-sm", "--split-mode"), {"metavar": "none|layer|row|tensor"}),
    ("main_gpu", ("-mg", "--main-gpu"), {"type": int, "help": "the only card of -sm none"}),
    ("devices", ("-dev", "--device"), {"metavar": "A,B|none", "help": "cards to use"}),
    ("rpc", ("--rpc",), {"metavar": "HOST:PORT,...", "help": "devices of gemcut rpc-server"}),
    ("flash_attention", ("-fa", "--flash-attn"), {"type": click.Choice(["on", "off", "auto"])}),
    (
        "threads",
        ("-t", "--threads"),
        {"type": click.IntRange(1, 512), "help": "default: all cores"},
    ),
    ("load_mode", ("--load-mode",), {"metavar": "none|mmap|mlock|mmap+mlock|dio"}),
    ("no_mmap", ("--no-mmap",), {"is_flag": True, "help": "read weights, do not map the file"}),
    ("mlock", ("--mlock",), {"is_flag": True, "help": "keep weights in RAM"}),
    ("no_repack", ("-nr", "--no-repack"), {"is_flag": True, "help": "no layout of the CPU's own"}),
    ("no_host", ("--no-host",), {"is_flag": True, "help": "no pinned memory"}),
    ("no_op_offload", ("--no-op-offload",), {"is_flag": True, "help": "cards leave prompts alone"}),
    ("swa_full", ("--swa-full",), {"is_flag": True, "help": "sliding windows keep everything"}),
)
# What is planned for, beside the flags.
_MACHINE = (
    click.option("--workload", metavar="chat|long|batch|P:A", help="tokens read and written"),
    click.option("--vram", metavar="A,B", help="of each card: 12G (default: this machine's)"),
    click.option("--ram", type=SIZE, help="of the host (default: this machine's)"),
    click.option("--machine", help="plan for a rtx-4070+ddr5-5600, or a machine.json"),
)
_LOAD_MODES = {"mmap+mlock": "mmap_mlock", "dio": "direct_io"}


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
        from gemcut.runtime.machine.profiles import open_profile, with_limits

        if self.machine:
            profile = open_profile(self.machine)
        else:
            with working("measuring this machine"):
                profile = api.machine_for(self.given)
        return with_limits(profile, self.vram, self.ram)

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
        flags = {name: said.pop(name) for name, _, _ in _FLAGS}
        machine = {name: said.pop(name) for name in ("workload", "vram", "ram", "machine")}
        return inner(wanted=_wanted(flags | {"n_seq": said.pop("n_seq")}, **machine), **said)

    together = click.option(
        *("-np", "--parallel", "n_seq"),
        type=click.IntRange(1, 256),
        default=parallel,
        show_default=True,
        help="sequences at once, which share the context",
    )
    flags = (click.option(*words, name, **settings) for name, words, settings in _FLAGS)
    of_machine = titled("What it is planned for", *_MACHINE)
    return titled("How it runs (what is not said is planned)", *flags, together)(
        of_machine(bundled)
    )


def show_placement(placement: "Placement") -> None:
    """Five lines of talk: places, memory, context, speed, notes."""
    for line in described(placement):
        say(line)


def described(placement: "Placement") -> list[str]:
    """What is planned, in five lines."""
    context, notes = placement.context, "; ".join(placement.notes)
    kinds = dict.fromkeys((context.type_k, context.type_v))
    many = f" for {context.n_seq} sequences" if context.n_seq > 1 else ""
    return [
        f"{placement.origin}: {'; '.join(_held(placement))}",
        f"memory: {'; '.join(_used(placement))}",
        f"context: {context.n_ctx} tokens{many}, keys and values in {' and '.join(kinds)}, "
        f"{context.n_ubatch} tokens computed at once; weights {_loaded(placement)}",
        f"predicted for {placement.workload}: {_speed(placement.prefill)} read, "
        f"{_speed(placement.decode)} written, {placement.seconds:.3g} s a request",
        f"notes: {notes or 'none'}",
    ]


def _held(placement: "Placement") -> Iterator[str]:
    """What each place holds: blocks at home, and experts that are not with their blocks."""
    for place, page in placement.ledger.items():
        said = [
            f"{format_size(size)} of {kind.removeprefix('weights: ')}"
            for kind, size in page.items()
            if kind.startswith("weights: ")
        ]
        caches = page.get("kv", 0)
        said += [f"{format_size(caches)} of keys and values"] if caches else []
        yield f"{place} {', '.join(said) or 'nothing'}"


def _used(placement: "Placement") -> Iterator[str]:
    memory = {place.name: place.memory for place in placement.profile.places}
    for place, page in placement.ledger.items():
        own = memory[place] - page["free"] - page["reserve"]
        free, kept = format_size(page["free"]), format_size(page["reserve"])
        yield f"{place} {format_size(own)} used, {free} free, {kept} kept for others"


def _loaded(placement: "Placement") -> str:
    model = placement.model
    words = {"none": "read", "mmap": "mapped"}
    kept = words.get(model.load_mode, f"loaded by {model.load_mode}")
    return f"{kept}, cards compute prompts" if _cards_read(placement) else kept


def _cards_read(placement: "Placement") -> bool:
    """Whether a card computes prompts with weights of the host."""
    model, linked = placement.model, any(card.link for card in placement.profile.cards)
    readable = not (model.no_host and model.repack)  # cards do not read the CPU's own layout
    return bool(linked and readable and placement.context.op_offload)


def _speed(speed: "Speed") -> str:
    doubt = speed.se / speed.seconds if speed.seconds else 0.0
    rate = speed.per_second
    return f"{rate:.{0 if rate >= 100 else 1}f} ±{doubt:.0%} tokens/s"


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


def given_of(flags: Mapping[str, Any]) -> "Given":
    """What flags mean, by their names here.

    Raises:
        UsageError: values that mean nothing, or contradict each other.
    """
    from gemcut.runtime.placement.given import ALL, Given

    said = dict(flags)
    if said.pop("cpu_moe") and said["n_cpu_moe"] is None:
        said["n_cpu_moe"] = ALL
    flash = said.pop("flash_attention")
    mapped, locked = not said.pop("no_mmap"), said.pop("mlock")
    return Given(
        cpu_moe=said.pop("n_cpu_moe"),
        gpu_layers=_layers(said.pop("gpu_layers")),
        overrides=tuple(_overrides(said.pop("overrides"))),
        tensor_split=tuple(_shares(said.pop("tensor_split"))),
        devices=_names(said.pop("devices")),
        rpc=_names(said.pop("rpc")) or (),
        flash_attention=None if flash in (None, "auto") else flash == "on",
        load_mode=_load_mode(said.pop("load_mode"), mapped, locked),
        repack=False if said.pop("no_repack") else None,
        no_host=said.pop("no_host") or None,
        op_offload=False if said.pop("no_op_offload") else None,
        type_k=_lower(said.pop("type_k")),
        type_v=_lower(said.pop("type_v")),
        **said,
    )


def _lower(word: str | None) -> str | None:
    return None if word is None else word.strip().lower()


def _layers(word: str | None) -> int | None:
    if word is None or word == "auto":
        return None
    if word == "all":
        return -1
    try:
        return int(word)
    except ValueError:
        raise UsageError(f"gpu layers {word!r:.40}: wanted a number, or all") from None


def _overrides(words: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for word in ",".join(words).split(",") if words else ():
        pattern, equals, device = word.rpartition("=")
        if not (equals and pattern and device):
            raise UsageError(f"override {word!r:.80}: wanted REGEX=DEVICE, as exps=CPU")
        yield pattern, device.strip()


def _shares(word: str | None) -> Iterator[float]:
    for each in word.replace("/", ",").split(",") if word else ():
        try:
            yield float(each)
        except ValueError:
            raise UsageError(f"tensor split {word!r:.40}: wanted shares, as 3,1") from None


def _names(word: str | None) -> tuple[str, ...] | None:
    if word is None:
        return None
    names = tuple(each.strip() for each in word.split(",") if each.strip())
    return () if names == ("none",) else names


def _load_mode(word: str | None, mapped: bool, locked: bool) -> str | None:
    if word is not None:
        return _LOAD_MODES.get(word, word)
    if locked:
        return "mmap_mlock" if mapped else "mlock"
    return None if mapped else "none"
