"""llama.cpp's flags for a run: their names, and what they mean together."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from gemcut.cli.common import CONTEXT, THREADS
from gemcut.errors import UsageError

if TYPE_CHECKING:  # the library is loaded when the command runs
    from gemcut.runtime.placement.given import Given

_POSITIVE = click.IntRange(min=1)
_TYPE = {"metavar": "TYPE"}
# (name in `Given`, flags, settings of click)
FLAGS: tuple[tuple[str, tuple[str, ...], dict[str, Any]], ...] = (
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
    ("threads", ("-t", "--threads"), {"type": THREADS, "help": "default: all cores"}),
    ("load_mode", ("--load-mode",), {"metavar": "none|mmap|mlock|mmap+mlock|dio"}),
    ("no_mmap", ("--no-mmap",), {"is_flag": True, "help": "read weights, do not map the file"}),
    ("mlock", ("--mlock",), {"is_flag": True, "help": "keep weights in RAM"}),
    (
        "repack",
        ("--repack/--no-repack", " /-nr"),
        {"default": None, "help": "weights in a layout of the CPU's own, or not"},
    ),
    ("no_host", ("--no-host",), {"is_flag": True, "help": "no pinned memory"}),
    ("no_op_offload", ("--no-op-offload",), {"is_flag": True, "help": "cards leave prompts alone"}),
    ("swa_full", ("--swa-full",), {"is_flag": True, "help": "sliding windows keep everything"}),
)
_LOAD_MODES = {"mmap+mlock": "mmap_mlock", "dio": "direct_io"}


def given_of(flags: Mapping[str, Any]) -> "Given":
    """What flags mean, by their names here.

    Raises:
        UsageError: values that mean nothing, or contradict each other.
    """
    from gemcut.runtime.placement.given import ALL, Given

    for one, other in _contradictions(flags):
        raise UsageError(f"{one} and {other} contradict each other: leave one of them out")
    said = dict(flags)
    if said.pop("cpu_moe"):
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
        no_host=said.pop("no_host") or None,
        op_offload=False if said.pop("no_op_offload") else None,
        type_k=_lower(said.pop("type_k")),
        type_v=_lower(said.pop("type_v")),
        **said,
    )


def _contradictions(said: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Pairs of flags of which llama.cpp would ignore one."""
    mode, alone = said["load_mode"], _names(said["devices"]) == ()
    layers, split, rpc = said["gpu_layers"], said["tensor_split"], said["rpc"]
    batch, ubatch = said["n_batch"], said["n_ubatch"]
    pairs = (
        (said["n_cpu_moe"] is not None and said["cpu_moe"], "-cmoe", f"-ncmoe {said['n_cpu_moe']}"),
        (said["no_mmap"] and mode in ("mmap", "mmap+mlock"), "--no-mmap", f"--load-mode {mode}"),
        (said["mlock"] and mode in ("none", "mmap", "dio"), "--mlock", f"--load-mode {mode}"),
        (split and said["split_mode"] == "none", "-sm none", f"-ts {split}"),
        (batch and ubatch and batch < ubatch, f"-b {batch}", f"-ub {ubatch}"),
        (alone and layers not in (None, "0", "auto"), "-dev none", f"-ngl {layers}"),
        (alone and split, "-dev none", f"-ts {split}"),
        (alone and rpc, "-dev none", f"--rpc {rpc}"),
    )
    return ((one, other) for wrong, one, other in pairs if wrong)


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
    if word and word != "auto":
        return _LOAD_MODES.get(word, word)
    if locked:
        return "mmap_mlock" if mapped else "mlock"
    return word if mapped else "none"
