"""What may become of every tensor: the options that the program chooses from.

An option is a type that the row allows, within the limits of the request, with the bytes that it
takes and their price (`pricing`). Padding, writing a fused tensor in parts, and a type for every
expert are options like any other.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from gemcut import ggml
from gemcut.convert.model import Model, Tensor
from gemcut.errors import PlanError, SensitivityError
from gemcut.profile import HOST
from gemcut.quantize import widths
from gemcut.quantize.choices import Choices, Way
from gemcut.quantize.mixtures import mixed
from gemcut.quantize.pricing import Pricing
from gemcut.quantize.request import Request, Rule, rules_of
from gemcut.quantize.widths import Padding, paddings, splits
from gemcut.roles import Role, role_of
from gemcut.runtime.memory.tensors import Placed, block_of, is_routed, layer_of
from gemcut.runtime.placement.problem import Item, Option
from gemcut.tensor_sensitivity import PARTS

# Smallest bits per weight of (experts, everything else). The default range is what suits a mixture
# of experts, and may be left where that is measured to be better; the limits are not left unless
# all types are asked for.
DEFAULT_RANGE = (4.25, 5.5)
LIMITS = (2.0, 4.25)
_NEVER = ("iq1_s", "iq1_m")  # unless asked for
_SUPER_BLOCK = 256


class Builder:
    """Makes the choices of a model for a request."""

    def __init__(
        self,
        model: Model,
        request: Request,
        weighted: Collection[str],
        pricing: Pricing,
        places: tuple[str, ...],
        roams: bool = True,
    ) -> None:
        """Prepare.

        Args:
            weighted: the tensors that there is importance for.
            places: what they are called, in the order of the program.
            roams: whether experts may be on the host while their block is on a card.
        """
        self.model, self.request, self.weighted = model, request, weighted
        self.pricing, self.measured = pricing, pricing.sensitivity.tensors
        self.places, self.roams = places, roams
        self.paddings = {
            tensor: (name, padding)
            for name, padding in paddings(model).items()
            if padding.width % _SUPER_BLOCK and not request.plain
            for tensor in padding.tensors
        }
        self.fused = {
            name: parts
            for name, parts in splits(model).items()
            if all(f"{name}#{part}" in self.measured for part in PARTS) and not request.plain
        }
        names = [tensor.name for tensor in model.tensors]
        apart = {part: name for name, parts in self.fused.items() for part in parts}
        fixed = {tensor.name for tensor in model.tensors if tensor.kept or not tensor.quantizable}
        self.rules = rules_of(request.rules, [*names, *apart], fixed, apart)
        self.blocks = max((block_of(name) or 0 for name in names), default=0) + 1
        if self.blocks > len(names) + 1:
            raise PlanError(f"{len(names)} tensors, one of them in block {self.blocks - 1}")
        self.tied = "output.weight" not in names
        self.ways: dict[tuple[str, str, bool], Way] = {}

    def build(self) -> Choices:
        """The choices.

        Raises:
            PlanError: a rule is about no tensor, or a tensor is left without any type or place.
            SensitivityError: a tensor was not measured.
        """
        items = tuple(item for tensor in self.model.tensors for item in self._tensor(tensor))
        return Choices(items, self.ways, self.fused)

    def _tensor(self, tensor: Tensor) -> tuple[Item, ...]:
        """Its item; or of a fused one those of its parts, if a rule is about one of them alone."""
        if tensor.name not in self.fused:
            return (self._item(tensor, tensor.name, tensor.name),)
        names = self.fused[tensor.name]
        apart = any(self._ruled(name) != self._ruled(tensor.name) for name in names)
        parts = tuple(
            self._item(tensor, name, f"{tensor.name}#{part}", len(PARTS), apart)
            for name, part in zip(names, PARTS, strict=True)
        )
        if apart:
            return parts
        return (replace(self._item(tensor, tensor.name, tensor.name), parts=parts),)

    def _ruled(self, name: str) -> tuple[tuple[str, ...], str | None]:
        rule = self.rules.get(name, Rule(name))
        return rule.types, rule.device

    def _item(
        self, tensor: Tensor, name: str, key: str, share: int = 1, mixing: bool = True
    ) -> Item:
        """One tensor, or one of the `share` parts of it that `key` stands for.

        Args:
            mixing: offer types per expert, if they are asked for. Parts that are an alternative to
                their whole have none: beside those of the whole they bring 0.3 percent.
        """
        width = self.paddings.get(tensor.name)
        padding = width[1] if width else None
        ways = self._ways(tensor, name, key, padding)
        found = [
            (way, self.pricing.option(way, _size(tensor, way, share, padding))) for way in ways
        ]
        if mixing and self.request.per_expert and self.pricing.runs(tensor.name):
            found += self._mixtures(tensor, key, found, share)
        self.ways |= {(name, option.name, option.padded): way for way, option in found}
        is_lookup = role_of(name).is_lookup
        return Item(
            name,
            tuple(option for _, option in found),
            block=self._block(name),
            roams=is_routed(name) and self.roams,
            copied=is_lookup and self._block(name) == self.blocks,
            width=width[0] if width else None,
            places=self._places(name),
        )

    def _block(self, name: str) -> int | None:
        """The output counts as one more block; tables are looked up on the host.

        A rule may leave an output's weights on the host without its block; those that are the
        embedding's, too, llama.cpp would hold there twice.
        """
        if name == "output.weight" and name in self.rules and self.rules[name].device == HOST:
            return None
        return layer_of(name, self.blocks, self.tied)

    def _places(self, name: str) -> frozenset[int] | None:
        device = self.rules[name].device if name in self.rules else None
        if device is None:
            return None
        found = {at for at, place in enumerate(self.places) if _is(place, device)}
        if self.places == ("",):
            raise PlanError(f"{name} is to live at {device}: no machine is planned for")
        if not found:
            raise PlanError(
                f"{name} is to live at {device}: this machine has {', '.join(self.places)}"
            )
        return frozenset(found)

    def _ways(self, tensor: Tensor, name: str, key: str, padding: Padding | None) -> Iterator[Way]:
        if tensor.kept or not tensor.quantizable:
            yield Way(tensor.name, tensor.kept or tensor.float_type)
            return
        found = list(self._candidates(tensor, key, padding))
        allowed = self._allowed(tensor, name, found)
        if not allowed:
            known = ", ".join(sorted({way.type for way in found}))
            raise PlanError(f"{name}: none of the types asked for fits it; it can be {known}")
        yield from allowed

    def _candidates(self, tensor: Tensor, key: str, padding: Padding | None) -> Iterator[Way]:
        """All that was measured and can be written."""
        if key not in self.measured:
            raise SensitivityError(f"{key} was not measured: another model's sensitivity?")
        floor = DEFAULT_RANGE[not role_of(tensor.name).is_expert]
        for name, error in self.measured[key].errors.items():
            kind = ggml.type_named(name.partition("@")[0])
            if ggml.needs_importance(kind) and tensor.name not in self.weighted:
                continue
            way = Way(tensor.name, kind.name, None, key, error, kind.bpw < floor, name)
            if kind.fits(tensor.columns):
                yield way
            if padding and kind.fits(_columns(tensor, padding)):
                units = padding.tensors[tensor.name] * _padded(padding)
                yield replace(way, padded_to=units)

    def _allowed(self, tensor: Tensor, name: str, ways: list[Way]) -> list[Way]:
        """Within rules and floors; of what these leave open, within the types and limits."""
        rule = self.rules.get(name, Rule(name))
        for each in {name, tensor.name}:  # of a part its own, and that of the whole
            if floor := self.request.floor(each):
                ways = [way for way in ways if ggml.type_named(way.type).bpw >= floor.bpw]
        if rule.types:
            return [way for way in ways if way.type in rule.types]
        if self.request.types is not None:
            wanted = {kind.lower() for kind in self.request.types}
            return [way for way in ways if way.type in wanted]
        if self.request.all_types:
            return ways
        return _within_limits(ways, role_of(tensor.name)) or ways

    def _mixtures(
        self, tensor: Tensor, key: str, found: Sequence[tuple[Way, Option]], share: int
    ) -> Iterator[tuple[Way, Option]]:
        """A type for every expert, among what is padded or what is not."""
        known = self.measured.get(key)
        if known is None or not known.experts:
            return
        if len(known.experts) != tensor.matrices:
            raise SensitivityError(f"{key}: {len(known.experts)} experts of {tensor.matrices}")
        for padded in (False, True):
            alike = [each for each in found if each[1].padded == padded]
            for way, option in mixed(known, alike, DEFAULT_RANGE[0]):
                weights = tensor.weights // share
                whole = Placed(tensor.name, way.type, option.size, weights, HOST)
                yield way, replace(option, reading=self.pricing.reading(whole))


def _within_limits(ways: list[Way], role: Role) -> list[Way]:
    least = LIMITS[not role.is_expert]
    return [w for w in ways if w.type not in _NEVER and ggml.type_named(w.type).bpw >= least]


def _size(tensor: Tensor, way: Way, share: int, padding: Padding | None) -> int:
    """Bytes of one of the `share` parts of a tensor."""
    rows, columns = tensor.rows // share, tensor.columns
    if way.padded_to and padding:
        columns = _columns(tensor, padding)
        if columns == tensor.columns:  # gate and up grow by rows
            rows = rows // widths.width(tensor) * way.padded_to
    return rows * ggml.type_named(way.type).row_bytes(columns)


def _is(place: str, device: str) -> bool:
    """Whether a place is the one that a rule names, or any card."""
    return place == device or (device == "gpu" and place != HOST)


def _padded(padding: Padding) -> int:
    return -(-padding.width // _SUPER_BLOCK) * _SUPER_BLOCK


def _columns(tensor: Tensor, padding: Padding) -> int:
    """Length of a padded tensor's rows: only down's are as long as the feed-forward is wide."""
    if ".ffn_down" in tensor.name:
        return padding.tensors[tensor.name] * _padded(padding)
    return tensor.columns
