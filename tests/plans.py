"""Plans of the demo's model for tests: machines, sensitivities, and what holds of every plan."""

import re
from dataclasses import replace

import numpy as np

from gemcut import api, ggml
from gemcut.convert.model import Model
from gemcut.engine import ContextOptions
from gemcut.errors import BudgetError
from gemcut.plan import Plan
from gemcut.profile import Processor, Profile
from gemcut.quantize.identity import fingerprint
from gemcut.quantize.outcome import Outcome
from gemcut.quantize.planner import plan_model
from gemcut.quantize.priors import prior_sensitivity
from gemcut.quantize.request import Request
from gemcut.quantize.widths import splits
from gemcut.roles import role_of
from gemcut.runtime.machine.cards import named
from gemcut.runtime.machine.profiles import with_limits
from gemcut.runtime.memory.ledger import fixed, rooms
from gemcut.sensitivity import GroupWeight, Sensitivity
from gemcut.sizes import parse_size
from gemcut.tensor_sensitivity import LocalError, TensorSensitivity

KEPT = re.compile(
    r".*(_norm(_\d)?|post_ffw_norm_\d|ffn_gate_inp|layer_output_scale)\.weight|.*\.scale"
)
NEEDS_IMPORTANCE = {"iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq1_s", "iq1_m"}
QUICK = ("q3_k", "q4_0", "q5_0", "q6_k", "q8_0", "bf16")  # ggml needs no large tables for them
EVERYTHING = 20_000_000  # bytes that hold the demo's model whole
GAP = 1e-3  # of a plan
CONTEXT = ContextOptions(n_ctx=1024, n_outputs=1)
GB = 10**9


def make(model: Model, machine: Profile | None = None, weighted: bool = True, **asked) -> Outcome:
    """A plan alone, without alternatives; `sensitivity` and `context` as in a task."""
    sensitivity, context = asked.pop("sensitivity", None), asked.pop("context", CONTEXT)
    task = api.make_task(model, Request(**asked), sensitivity, None, machine, context)
    names = frozenset(importance_of(model)) if weighted else frozenset()
    return plan_model(replace(task, weighted=names), alternatives=False)


def importance_of(model: Model, without: str = "nothing") -> dict[str, ggml.Floats]:
    """Ones for all tensors but those with this in their names, and what rows are looked up in."""
    return {
        t.name: np.ones((t.matrices, t.columns), np.float32)
        for t in model.tensors
        if without not in t.name and t.quantizable and not role_of(t.name).is_lookup
    }


def pc(vram: float | None = None, ram: float | None = None, spec: str = "rtx-4070+ddr5-5600"):
    """A profile out of data sheets, with other amounts of memory, in bytes."""
    cards = None if vram is None else [int(vram)]
    return with_limits(named(spec), cards, None if ram is None else int(ram))


def small(model: Model, vram: int, ram: int) -> Profile:
    """A machine with so many bytes for a small model's tensors and caches."""
    host = Processor("cpu", "host", 0, 0, 20e9, flops=1e11)
    card = Processor("gpu0", "card", 0, 0, 200e9, flops=1e13, link=10e9)
    none = Profile("small", host, (card,), 1e-3, 2e-5)
    on_host, on_card = rooms(none, fixed(model.metadata, CONTEXT))
    host, card = replace(host, memory=ram - on_host), replace(card, memory=vram - on_card)
    return replace(none, host=host, cards=(card,))


def probed(model: Model, whole: float = 1.0) -> Sensitivity:
    """As if it had been measured, with the parts of fused tensors.

    Args:
        whole: how many times the error of its parts a fused tensor has.
    """
    names = frozenset(importance_of(model))
    prior = prior_sensitivity(model, names)
    groups = {
        name: GroupWeight(weight.weight, 0.3 * weight.weight, "probe")
        for name, weight in prior.groups.items()
    }
    tensors = dict(prior.tensors)
    for name in splits(model):
        known = prior.tensors[name]
        for part, share in (("gate", 0.4), ("up", 0.6)):
            errors = {k: LocalError(share * e.mean, e.se) for k, e in known.errors.items()}
            tensors[f"{name}#{part}"] = TensorSensitivity(known.group, errors)
        errors = {k: LocalError(whole * e.mean, e.se) for k, e in known.errors.items()}
        tensors[name] = TensorSensitivity(known.group, errors)
    return replace(prior, source=fingerprint(model), groups=groups, tensors=tensors)


def candidates_of(plan: Plan, model: Model) -> dict[str, str]:
    """What the plan writes, in a sensitivity's words."""
    apart = {
        part: f"{name}#{which}"
        for name, parts in splits(model).items()
        for which, part in zip(("gate", "up"), parts, strict=True)
    }
    said = {}
    for name, entry in plan.tensors.items():
        kind, padded = ggml.type_named(entry.type), entry.padded_to or 0
        alone = ".ffn_down" not in name or kind.fits(padded and columns_of(model, name))
        said[apart.get(name, name)] = entry.type if alone else f"{entry.type}@{padded}"
    return said


def columns_of(model: Model, name: str) -> int:
    return next(tensor.columns for tensor in model.tensors if tensor.name == name)


def check(model: Model, plan: Plan, weighted: bool = True, floors: tuple[float, float] = (2, 4.25)):
    """Kept tensors are F32; types are within the limits, and need no importance that is missing."""
    kinds = {name: ggml.type_named(entry.type) for name, entry in plan.tensors.items()}
    for name, kind in kinds.items():
        if KEPT.fullmatch(name) or name == "rope_freqs.weight":
            assert kind.name == "f32", name
            continue
        assert kind.bpw >= floors[not role_of(name).is_expert], (name, kind)
        unweighted = not weighted or name == "token_embd.weight"
        assert not (unweighted and kind.name in NEEDS_IMPORTANCE), (name, kind)


def check_ledger(machine: Profile, plan: Plan) -> None:
    """What a place holds is within its memory, and all of it is told."""
    for place in machine.places:
        page = plan.ledger[place.name]
        assert sum(page.values()) == place.memory
        if place.memory:
            assert page["free"] >= 0, (place.name, page)
    weights = [
        bytes_
        for page in plan.ledger.values()
        for what, bytes_ in page.items()
        if what.startswith("weights")
    ]
    assert sum(weights) >= plan.size  # a table that is looked up in stands twice


def would_do(refused: BudgetError, what: str) -> int | None:
    """The bytes that an error says would do."""
    said = str(refused)
    if what == "file":
        match = re.search(r"a file of (\d+) bytes would do", said)
        assert match, said
        return int(match[1])
    match = re.search(rf"([\d.]+ \wB) of {what} would do", said)
    return parse_size(match[1]) if match else None
