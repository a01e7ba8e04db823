"""Plans in llama.cpp's own words: for llama-quantize the types, for llama-server the places.

Both take regular expressions (ECMAScript, searched in the name, the first match wins). Those
written here are anchored at both ends and name blocks one by one, so that no two match the same
tensor and their order means nothing.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gemcut.convert.precision import is_quantizable
from gemcut.engine import ContextOptions
from gemcut.errors import EngineError, PlanError
from gemcut.plan import Plan
from gemcut.profile import HOST, Profile
from gemcut.quantize import stock
from gemcut.quantize.roles import role_of
from gemcut.runtime.ledger import Placed, block_of, homes

_BLOCK = re.compile(r"blk\.(\d{1,9})\.(.+)")
_SPECIAL = re.compile(r"([.^$*+?()\[\]{}|\\])")
# llama-quantize splits its file at white space and at "=", and reads patterns as lower case;
# llama-server splits overrides at "," and "=".
_PLAIN = re.compile(r"[a-z0-9_.\-]+")
_BATCH = 2048  # tokens: llama-server's default, which bounds -ub
# Names no tensor. Without any override llama.cpp computes on several cards in a pipeline, which
# takes memory that no ledger has.
_NOTHING = "^$"
_OUTPUT, _EMBEDDING = "output.weight", "token_embd.weight"


@dataclass(frozen=True)
class Layout:
    """Where llama.cpp is to put a model's tensors."""

    gpu_layers: int  # of the last ones, the output counted as one
    split: tuple[int, ...]  # of them, on each card of the machine, if it has several
    host: tuple[str, ...]  # expressions for what stays on the host all the same


def tensor_types(plan: Plan) -> str:
    """The text of llama-quantize's --tensor-type-file: one "expression=type" a line.

    With it llama-quantize gives every tensor the plan's type, whatever mixture it is told, as long
    as that is a quantized one (see `mixture`). Tensors that it never cuts are left out.

    Raises:
        PlanError: the plan pads or splits tensors, or has types for single experts.
    """
    kinds: dict[str, list[str]] = defaultdict(list)
    for name, entry in plan.tensors.items():
        if entry.padded_to or entry.split or entry.experts:
            done = "pads" if entry.padded_to else "splits" if entry.split else "has types within"
            raise PlanError(
                f"the plan {done} {name}, which llama-quantize cannot do: plan with --plain, or "
                "write the file with `gemcut quantize --plan`"
            )
        if is_quantizable(name, (2, 1)) and role_of(name).name != "norm":
            kinds[entry.type].append(name)
    lines = (f"{each}={kind}\n" for kind in sorted(kinds) for each in expressions(kinds[kind]))
    return "".join(lines)


def mixture(plan: Plan) -> str:
    """The mixture to tell llama-quantize beside the types: that of most tensors.

    It decides `general.file_type`, and it is a quantized one: for others no types are read.
    """
    counts = Counter(e.type for n, e in plan.tensors.items() if is_quantizable(n, (2, 1)))
    names = {number: name for name, (number, _) in stock.MIXTURES.items()}
    for kind, _ in counts.most_common():
        name = names.get(stock.file_type({kind: 1}), "")
        if name and name not in ("f32", "f16", "bf16"):
            return name.upper()
    return "Q8_0"


def layout(plan: Plan) -> Layout:
    """A plan's places, as llama.cpp is told of them.

    llama.cpp gives whole layers to cards, the last ones, in order; what is left for single tensors
    is to keep them on the host.

    Raises:
        PlanError: the plan has no places, or such as llama.cpp cannot be told of.
        ProfileError: its machine is none.
    """
    places = {name: entry.device for name, entry in plan.tensors.items()}
    if None in places.values():
        raise PlanError("the plan says nothing of places: plan for a machine (--vram, --ram)")
    layers = _layers({name: str(place) for name, place in places.items()})
    if layers != sorted(layers, key=_number):
        raise PlanError(
            f"the plan's layers are at {', '.join(dict.fromkeys(layers))}, in this order; "
            "llama.cpp fills the host first and then the cards: plan again"
        )
    # Untold, llama.cpp uses all cards there are, those without a layer in the plan, too.
    split = tuple(layers.count(f"gpu{index}") for index in range(_cards(plan, layers)))
    return Layout(
        gpu_layers=sum(place != HOST for place in layers),
        split=split if len(split) > 1 and any(split) else (),
        host=tuple(expressions(_kept_back(plan, layers))),
    )


def server_arguments(plan: Plan, file: str) -> list[str]:
    """The command line with which llama-server runs the plan's file as it was planned.

    Its cache of earlier prompts, 8 GiB of the host's memory, is left out: no ledger has it.

    Raises:
        PlanError, ProfileError: see `layout`; or the plan was made for no context.
    """
    where, context = layout(plan), _context(plan)
    words = ["llama-server", "-m", file, "-c", context.n_ctx, "-np", context.n_seq]
    words += ["-b", context.n_ubatch] if context.n_ubatch > _BATCH else []
    words += ["-ub", context.n_ubatch, "-ctk", context.type_k, "-ctv", context.type_v]
    words += ["-fa", "on", "-fit", "off", "-cram", 0, "-ngl", where.gpu_layers]
    if where.split:
        words += ["-ts", ",".join(map(str, where.split))]
    if where.host or where.split:
        words += ["-ot", ",".join(f"{each}=CPU" for each in where.host or (_NOTHING,))]
    return list(map(str, words))


def _context(plan: Plan) -> ContextOptions:
    if not plan.context:
        raise PlanError("the plan says nothing of a context: plan for a machine (--vram, --ram)")
    try:
        return ContextOptions(**plan.context)
    except (TypeError, EngineError) as error:
        raise PlanError(f"the plan's context is none: {error}") from error


def expressions(names: Iterable[str]) -> list[str]:
    """Regular expressions that match these tensors and no others.

    Raises:
        PlanError: a name that llama.cpp's options could not hold.
    """
    blocks: dict[str, list[int]] = defaultdict(list)
    found = []
    for name in names:
        if not _PLAIN.fullmatch(name):
            raise PlanError(f"{name}: llama.cpp's options cannot name this tensor")
        if match := _BLOCK.fullmatch(name):
            blocks[match[2]].append(int(match[1]))
        else:
            found.append(f"^{_escaped(name)}$")
    alike: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for tail, numbers in blocks.items():
        alike[tuple(sorted(numbers))].append(_escaped(tail))
    found += (
        rf"^blk\.{_any([str(number) for number in numbers])}\.{_any(sorted(tails))}$"
        for numbers, tails in alike.items()
    )
    return sorted(found)


def _any(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"({'|'.join(words)})"


def _escaped(name: str) -> str:
    return _SPECIAL.sub(r"\\\1", name)


def _layers(places: dict[str, str]) -> list[str]:
    """The place of each block, and last that of the output."""
    placed = [Placed(name, "", 0, 0, place) for name, place in places.items()]
    last = max((tensor.block for tensor in placed if tensor.block is not None), default=-1)
    if last >= len(placed):
        raise PlanError(f"the plan has {len(placed)} tensors, one of them in block {last}")
    found = list(homes(placed, last + 1))
    output = places.get(_OUTPUT, places.get(_EMBEDDING, HOST))
    # llama.cpp computes the output where the last blocks are; its weights may stay on the host.
    return [*found, output if output != HOST or not found else found[-1]]


def _cards(plan: Plan, layers: list[str]) -> int:
    """How many cards the plan's machine has."""
    known = Profile.from_dict(plan.machine, "the plan's machine").cards if plan.machine else ()
    return max(len(known), 1 + max(map(_number, layers)))


def _kept_back(plan: Plan, layers: list[str]) -> list[str]:
    """The tensors on the host that llama.cpp would put on a card with their layer."""
    kept = []
    tied = _OUTPUT not in plan.tensors
    for name, entry in plan.tensors.items():
        block, is_output = block_of(name), tied and name == _EMBEDDING
        own = layers[-1 if block is None else block]
        if block is None and role_of(name).is_lookup and not is_output:
            own = HOST
        if entry.device == HOST != own:
            kept.append(name)
        elif entry.device != own:
            raise PlanError(
                f"{name} is to live at {entry.device}, its layer at {own}: llama.cpp's command "
                "line cannot say that"
            )
    return kept


def _number(place: str) -> int:
    """The order of places: the host, then the cards."""
    return -1 if place == HOST else int(place.removeprefix("gpu"))
