"""Plans in llama.cpp's own words: for llama-quantize the types, for llama-server the places."""

from collections import Counter, defaultdict

from gemcut.convert.precision import is_quantizable
from gemcut.errors import PlanError
from gemcut.plan import Plan
from gemcut.profile import Profile
from gemcut.quantize import stock
from gemcut.quantize.single_experts import has_experts
from gemcut.roles import role_of
from gemcut.runtime.placement.carried import context_of
from gemcut.runtime.placement.layout import NOTHING, Layout, expressions
from gemcut.runtime.placement.layout import layout as layout_of

_BATCH = 2048  # tokens: llama-server's default, which bounds -ub


def tensor_types(plan: Plan) -> str:
    """The text of llama-quantize's --tensor-type-file: one "expression=type" a line.

    With it llama-quantize gives every tensor the plan's type, whatever mixture it is told, as long
    as that is a quantized one (see `mixture`). Tensors that it never cuts are left out.

    Raises:
        PlanError: the plan pads or splits tensors, or has types for single experts.
    """
    kinds: dict[str, list[str]] = defaultdict(list)
    for name, entry in plan.tensors.items():
        if entry.padded_to or entry.split or entry.experts is not None:
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

    Raises:
        PlanError: the plan has no places, or such as llama.cpp cannot be told of.
        ProfileError: its machine is none.
    """
    places = {name: entry.device for name, entry in plan.tensors.items()}
    if None in places.values():
        raise PlanError("the plan says nothing of places: plan for a machine (--vram, --ram)")
    known = Profile.from_dict(plan.machine, "the plan's machine").cards if plan.machine else ()
    return layout_of({name: str(place) for name, place in places.items()}, len(known))


def server_arguments(plan: Plan, file: str) -> list[str]:
    """The command line with which llama-server runs the plan's file as it was planned.

    Its cache of earlier prompts, 8 GiB of the host's memory, is left out: no ledger has it.

    Raises:
        PlanError, ProfileError: see `layout`; or the plan was made for no context, or has types for
            single experts.
    """
    if has_experts(plan):
        raise PlanError(
            "the plan has types for single experts, which llama-server cannot load: run its file "
            "with `gemcut serve`, or plan without --per-expert"
        )
    where, context = layout(plan), context_of(plan)
    words = ["llama-server", "-m", file, "-c", context.n_ctx, "-np", context.n_seq]
    words += ["-b", context.n_ubatch] if context.n_ubatch > _BATCH else []
    words += ["-ub", context.n_ubatch, "-ctk", context.type_k, "-ctv", context.type_v]
    words += ["-fa", "on", "-fit", "off", "-cram", 0, "-ngl", where.gpu_layers]
    if where.split:
        words += ["-ts", ",".join(map(str, where.split))]
    if where.host or where.split:
        words += ["-ot", ",".join(f"{each}=CPU" for each in where.host or (NOTHING,))]
    return list(map(str, words))
