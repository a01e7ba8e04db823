"""How fast a placed model would run at any depth: the throughput model, asked about one run.

A depth is how many tokens the context holds already. A placement is made for a workload; what is
measured of it has prompts and answers of other lengths, and is compared with this.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from gemcut.engine import Memory
from gemcut.errors import EngineError
from gemcut.gguf_file import GGUFFile, Value
from gemcut.gguf_parts import GGUFParts
from gemcut.profile import Profile
from gemcut.runtime.memory.ledger import Fixed
from gemcut.runtime.memory.tensors import Placed
from gemcut.runtime.placement.contents import Contents, contents_of
from gemcut.runtime.placement.needs import Needs, Probe
from gemcut.runtime.placement.placement import Placement
from gemcut.runtime.placement.workload import Workload
from gemcut.runtime.speed.throughput import Speed, decode_speed, prefill_speed

_TOKENS, _VOCABULARY = "tokenizer.ggml.tokens", "vocab_size"


@dataclass(frozen=True)
class Forecast:
    """Asked about one placement of a file's contents.

    probe: asked what a context of an unknown architecture takes; None: that is an EngineError.
    """

    contents: Contents
    placement: Placement
    probe: Probe | None = None

    def decode(self, depth: int) -> Speed:
        """Speed of the token that follows on so many.

        Raises:
            PlanError, GGUFError, EngineError: see `gemcut.runtime.placement.needs.Needs`.
        """
        return decode_speed(self._profile, self._needs(depth), self._tensors, self.contents.shares)

    def prefill(self, depth: int, prompt: int) -> Speed:
        """Speed of reading a prompt that follows on so many tokens.

        Raises:
            as `decode`.
        """
        seconds = (self._reading(depth + prompt) - self._reading(depth)) / prompt
        return Speed(seconds, seconds * self._profile.doubt)

    def _reading(self, tokens: int) -> float:
        """Seconds in which a prompt is read into an empty context."""
        if not tokens:
            return 0.0
        needs, shares = self._needs(tokens), self.contents.shares
        return tokens * prefill_speed(self._profile, needs, self._tensors, shares, tokens).seconds

    def _needs(self, depth: int) -> Fixed:
        needs = Needs(self.contents, Workload("", depth, 0), self.probe or _unasked)
        return needs(self.placement.loading.computing(self.placement.context, self._profile))

    @cached_property
    def _profile(self) -> Profile:
        return self.placement.loading.priced(self.placement.profile)

    @cached_property
    def _tensors(self) -> Sequence[Placed]:
        places = self.placement.places
        return [replace(each, place=places[each.name]) for each in self.contents.tensors]


def forecast_of(
    file: GGUFFile | GGUFParts, placement: Placement, probe: Probe | None = None
) -> Forecast:
    """The forecast of an opened file's placement. It outlives the file, and holds little of it.

    Raises:
        PlanError: there is no model in the file.
    """
    contents = contents_of(file)
    # A vocabulary takes megabytes; how many tokens it has is all that memory and speed depend on.
    metadata = {k: v for k, v in contents.metadata.items() if not k.startswith("tokenizer.")}
    if tokens := contents.metadata.get(_TOKENS):
        name = f"{contents.metadata['general.architecture'].data}.{_VOCABULARY}"
        metadata[name] = Value("u32", len(tokens.data))
    return Forecast(replace(contents, metadata=metadata), placement, probe)


def _unasked(*_: object) -> Memory:
    raise EngineError("what a context of this architecture takes is not known")
