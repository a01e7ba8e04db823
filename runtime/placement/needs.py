"""What a context of a file takes beside its tensors: by formulas, or as llama.cpp itself says.

The formulas know most architectures. Of others llama.cpp is asked, without loading a weight, which
takes seconds: then few contexts are tried.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from gemcut.engine import ContextOptions, Memory, ModelOptions
from gemcut.kv_layout import kv_layout
from gemcut.runtime.memory.activations import pool_bytes, widths
from gemcut.runtime.memory.ledger import LEAST_OFFLOADED, Fixed, fixed
from gemcut.runtime.placement.contents import Contents
from gemcut.runtime.placement.workload import Workload

Probe = Callable[[ModelOptions, ContextOptions], Memory]


@dataclass
class Needs:
    """What contexts take, each worked out once; attention is at the workload's mean depth."""

    contents: Contents
    workload: Workload
    probe: Probe
    _known: dict[ContextOptions, Fixed] = field(default_factory=dict)

    def __post_init__(self) -> None:
        architecture = str(self.contents.metadata["general.architecture"].data)
        self.by_formula = kv_layout(architecture, self.contents.metadata) is not None

    def __call__(self, options: ContextOptions) -> Fixed:
        """What a context with these options takes.

        Raises:
            PlanError: keys or values do not divide into their types.
            GGUFError: the metadata is not what it should be.
            EngineError: llama.cpp, which was asked, refuses the file.
        """
        if options not in self._known:
            self._known[options] = (self._formula if self.by_formula else self._asked)(options)
        return self._known[options]

    def _formula(self, options: ContextOptions) -> Fixed:
        return fixed(self.contents.metadata, options, self._depth)

    @property
    def _depth(self) -> int:
        """Tokens before the mean one of an answer."""
        return self.workload.prompt + self.workload.answer // 2

    def _asked(self, options: ContextOptions) -> Fixed:
        memory = self.probe(ModelOptions(devices=()), options)
        blocks, tokens = self.contents.blocks, min(options.n_ubatch, options.n_ctx)
        each = -(-sum(cache.bytes for cache in memory.caches) // blocks)
        depth = min(options.n_ctx // options.n_seq, self._depth)
        read = each * depth // options.n_ctx
        return Fixed(
            caches=(each,) * blocks,
            reads=(read,) * blocks,
            compute=max(memory.compute.values(), default=0),
            outputs=memory.outputs,
            dequantized=2 * each if {options.type_k, options.type_v} != {"f16"} else 0,
            pool=pool_bytes(widths(self.contents.metadata), options),
            tokens=tokens,
            offloads=options.op_offload and tokens >= LEAST_OFFLOADED,
            kind=options.type_k,
        )
