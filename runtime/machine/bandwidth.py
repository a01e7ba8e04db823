"""How fast a device reads weights of each type, measured in seconds without a model.

Products with one vector on tensors that no cache holds, as experts are computed: what a token
costs. Products with a batch: what a prompt costs. And what it costs to speak to the device at all.
Other programs only ever make a step slower, so where steps differ much the fastest is kept, and
the result says that the machine was not calm.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from time import perf_counter

from gemcut import ggml
from gemcut.engine import Device
from gemcut.errors import EngineError
from gemcut.llama.backend import Backend, Buffer
from gemcut.llama.matmul import Products, Sums

# What a plan may choose, and what the models that it starts from hold.
TYPES = tuple(
    "iq1_s iq1_m iq2_xxs iq2_xs iq2_s q2_k q2_0 iq3_xxs q3_k iq3_s mxfp4 iq4_xs iq4_nl q4_0 q4_k"
    " q4_1 q5_0 q5_k q5_1 q6_k q8_0 bf16 f16 f32".split()
)
_GEMM = ("q4_k", "q6_k", "q8_0")  # the types of most weights, for products with a batch
_BATCH = 512
_SHAPE = (1024, 2048)  # an expert's matrix in the models of today
_LARGE = (4096, 2048)  # for a card's batches
_MANY, _SHORT = 16, 2e-3  # products at once, if one alone takes fewer seconds
_USED = 4  # experts of one product; few, so that a step is short beside a scheduler's interruption
_LEAST, _MOST = 3, 400  # steps that are timed
_CALM = 1.5  # median over fast end, above which something else was running

Tell = Callable[[int, int], None]  # types done, types in all


@dataclass(frozen=True)
class Rates:
    """What one device does. Seconds, bytes/s and FLOP/s."""

    by_type: Mapping[str, float]  # bytes/s of encoded weights, products with one vector
    flops: float  # products with a batch of 512
    link: float  # bytes/s from the host's memory, pinned if the device offers that; of a CPU 0
    operation: float  # seconds of an operation that is no product: an addition of 2048 numbers
    turn: float  # seconds to have the smallest computation done and read its result
    calm: bool  # False: other programs took so much that steps differed by half


def measure_rates(
    device: Device,
    threads: int,
    types: Sequence[str] | None = None,
    seconds: float = 3.0,
    rearrange: bool = True,
    tell: Tell = lambda done, total: None,
) -> Rates:
    """Measure one device.

    Args:
        threads: of a CPU.
        types: ggml names; None: all that a plan may choose. What the device lacks is left out.
        seconds: to spend on it about, without what preparing takes.
        rearrange: let a CPU keep weights in its own layouts, as llama.cpp does without a card.

    Raises:
        EngineError: the device does not start, or has no memory free.
        PlanError: a type that ggml does not have.
    """
    names = TYPES if types is None else types
    kinds = [ggml.type_named(name) for name in names]
    meter = _Meter(device.kind == "cpu", threads, _share(device, threads, seconds, len(kinds)))
    with ExitStack() as stack:
        backend = stack.enter_context(Backend(device.name, threads))
        layouts = backend.layouts() if rearrange else backend.layouts()[-1:]
        size = _span(device)
        memories = [stack.enter_context(Buffer(backend, size, layout)) for layout in layouts]
        by_type = {}
        for done, kind in enumerate(kinds):
            tell(done, len(kinds))
            if rate := meter.read(memories, kind):
                by_type[kind.name] = rate
        tell(len(kinds), len(kinds))
        flops = meter.multiply(memories)
        turn, operation = meter.speak(backend)
        link = 0.0 if device.kind == "cpu" else _link(memories[-1])
    return Rates(by_type, flops, link, operation, turn, meter.calm)


def _share(device: Device, threads: int, seconds: float, types: int) -> float:
    """Seconds for one measurement: of each type, of batches, and of what cannot be too small."""
    times = 2 if device.kind == "cpu" and threads > 1 else 1
    return seconds / times / (types + len(_GEMM) + 2)


def _span(device: Device) -> int:
    """Bytes to go round in: more than caches hold, and a small part of what is free."""
    wanted = 256 << 20 if device.kind == "cpu" else 512 << 20
    span = min(wanted, device.free // 4) if device.free else wanted
    if span < 32 << 20:
        raise EngineError(f"{device.name} has {device.free} bytes free: too few to measure it")
    return span


class _Meter:
    """Takes times, and remembers whether the machine was calm."""

    def __init__(self, cpu: bool, threads: int, seconds: float) -> None:
        self._cpu, self._threads, self._seconds, self.calm = cpu, threads, seconds, True

    def read(self, memories: Sequence[Buffer], kind: ggml.Type) -> float:
        """Bytes/s of products with one vector; 0 if the device does not multiply the type."""
        matrix = _SHAPE[0] * kind.row_bytes(_SHAPE[1])
        # A card is told once for many products: each alone would be over before it is asked about.
        most = memories[0].size // 2 // matrix
        count = _USED if self._cpu else max(_USED, most // _USED * _USED)
        with _first(memories, kind, _SHAPE, count, used=_USED) as products:
            return products.step_bytes / self._time(products) if products else 0.0

    def multiply(self, memories: Sequence[Buffer]) -> float:
        """FLOP/s of products with a batch, over types of which a model may have most."""
        flops = seconds = 0.0
        for name in _GEMM:
            done, time = self._batch(memories, ggml.type_named(name), 1)
            if 0 < time < _SHORT and not self._cpu:
                # Telling a card takes part of that: many at once.
                done, time = self._batch(memories, ggml.type_named(name), _MANY)
            flops, seconds = flops + done, seconds + time
        return flops / seconds if seconds else 0.0

    def _batch(
        self, memories: Sequence[Buffer], kind: ggml.Type, count: int
    ) -> tuple[float, float]:
        """FLOP of a step and its seconds; 0 if the device does not multiply the type."""
        rows, columns = _LARGE if not self._cpu else _SHAPE
        most = memories[0].size // (2 * rows * kind.row_bytes(columns))
        with _first(memories, kind, (rows, columns), min(count, most), batch=_BATCH) as products:
            return (products.step_flops, self._time(products)) if products else (0.0, 0.0)

    def speak(self, backend: Backend) -> tuple[float, float]:
        """Seconds of the smallest computation, and of one operation more."""
        few, many = 1, 257
        times: list[float] = []
        for count in (few, many):
            with Sums(backend, count) as sums:
                times.append(self._time(sums))
        return times[0], max(0.0, times[1] - times[0]) / (many - few)

    def _time(self, products: Products | Sums) -> float:
        """Seconds of a step.

        Threads wait for each other, so one that is interrupted holds up all, step after step. On a
        busy machine one thread alone may be faster: then that is what is known.
        """
        if not self._cpu or self._threads == 1:
            return self._steps(products)
        products.backend.set_threads(1)
        alone = self._steps(products)
        products.backend.set_threads(self._threads)
        together = self._steps(products)
        self.calm &= together < _CALM * alone
        return min(alone, together)

    def _steps(self, products: Products | Sums) -> float:
        seconds, calm = _fast_end(products.step, self._seconds)
        self.calm &= calm
        return seconds


def _fast_end(step: Callable[[], float], seconds: float) -> tuple[float, bool]:
    """The median time of a step on a calm machine, else the fastest; and whether it was calm."""
    step()  # pages, clocks and kernels that are made at first use
    times: list[float] = []
    end = perf_counter() + seconds
    while len(times) < _LEAST or (perf_counter() < end and len(times) < _MOST):
        times.append(step())
    fast, middle = sorted(times)[len(times) // 10], median(times)
    return (middle, True) if middle <= _CALM * fast else (min(times), False)


@contextmanager
def _first(
    memories: Sequence[Buffer],
    kind: ggml.Type,
    shape: tuple[int, int],
    count: int,
    batch: int = 1,
    used: int = 0,
) -> Iterator[Products | None]:
    """Products in the first layout that the device multiplies this type in, as in llama.cpp."""
    for memory in memories:
        with Products(memory, kind, shape, count, batch, used) as products:
            if products.supported:
                yield products
                return
    yield None


def _link(memory: Buffer) -> float:
    """Bytes/s of copies from the host's memory."""
    size = min(memory.size, 64 << 20)
    return size / min(memory.copy(size) for _ in range(_LEAST))
