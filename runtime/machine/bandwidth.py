"""How fast a device multiplies weights of each type, measured in seconds without a model.

Products with one vector on tensors that no cache holds, as experts are computed: what a token
costs. Products with a batch, of a matrix and of experts: what a prompt costs. All of it in both
layouts where a CPU has one of its own: which is faster depends on the CPU, the type and the phase,
by up to a factor of two. Attention of one token and of a batch: what the tokens before cost. And
what it costs to speak to the device at all.

Other programs only ever make a step slower, so where steps differ much the fastest is kept, and the
result says that the machine was not calm. Threads wait for each other, so one that is held up holds
up all; of one thread's own seconds no other program has a share. So there it counts what one thread
does, times what all of them gained in the measurements that were least disturbed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from statistics import harmonic_mean, median
from time import perf_counter

from gemcut import ggml
from gemcut.engine import Device
from gemcut.errors import EngineError
from gemcut.llama.attention import Attention
from gemcut.llama.backend import Backend, Buffer
from gemcut.llama.matmul import Products, Sums
from gemcut.llama.steps import Steps
from gemcut.profile import Kernels

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
# A CPU's batches: fewer rows and vectors, so that slow types take milliseconds, too. An expert's
# share is 32 vectors, as of 512 tokens that use 8 of 128.
_ROWS, _DENSE_BATCH, _SHARE = 256, 128, 32
_CACHES = ("f16", "q8_0", "q4_0")  # types of keys and values
# Cells; heads of keys and values; heads of queries to each; for a card more, or all is overhead.
_HEADS, _MORE_HEADS = (1024, 2, 4), (4096, 4, 8)
_BLOCKS = 4  # of a step; of many heads as many as half of the memory holds
_LEAST, _MOST = 3, 400  # steps that are timed
_BRIEF = 0.01  # seconds for a product with a batch: steps of a millisecond are soon held up
_CALM = 1.5  # median over fast end, above which something else was running
_DISTURBED = 0.25  # share of the measurements, above which the machine was not calm
_SEEN = 8  # disturbed measurements, after which a machine is taken to be busy
_LUCKY = 0.75  # share of the measurements whose gain from more threads is no larger

Tell = Callable[[int, int], None]  # types done, types in all
# Products with one vector; with a batch, of a matrix or experts; attention of a token, of a batch.
_READ, _DENSE, _ROUTED, _RECALL, _ATTEND = range(5)
_PRODUCTS = (_READ, _DENSE, _ROUTED)
_PLAIN, _OWN = range(2)  # layouts


@dataclass(frozen=True)
class Rates:
    """What one device does. Seconds, bytes/s and FLOP/s."""

    plain: Kernels  # weights as they are in files
    rearranged: Kernels  # in a CPU's own layouts, those types that have one
    flops: float  # products with a batch of plain weights
    link: float  # bytes/s from the host's memory, pinned if the device offers that; of a CPU 0
    operation: float  # seconds of an operation that is no product: an addition of 2048 numbers
    turn: float  # seconds to have the smallest computation done and read its result
    calm: bool  # False: other programs took so much that steps often differed by half
    caches: Mapping[str, float] = field(default_factory=dict)  # see `Processor.caches`
    attention: Mapping[str, float] = field(default_factory=dict)  # see `Processor.attention`


@dataclass(frozen=True)
class Sample:
    """One measurement: work of a step, in bytes or FLOP, and seconds that it takes."""

    work: float
    alone: float  # one thread
    together: float | None  # all; None: on a busy machine it was not tried
    calm: bool = True  # whether nothing held them up

    @property
    def best(self) -> float:
        """Seconds by as many threads as were fastest."""
        return min(self.alone, self.together or self.alone)

    def rate(self, gain: float | None = None) -> float:
        """Work per second, as measured, or with such a gain from more threads than one."""
        return self.work / (self.best if gain is None else self.alone / gain)


Samples = Mapping[tuple[int, int, str], Sample]  # by phase, layout and type


def measure_rates(
    device: Device,
    threads: int,
    types: Sequence[str] | None = None,
    seconds: float = 2.0,
    tell: Tell = lambda done, total: None,
) -> Rates:
    """Measure one device.

    Args:
        threads: of a CPU.
        types: ggml names; None: all that a plan may choose. What the device lacks is left out.
        seconds: to spend on products with one vector about; the rest takes what it takes.
        tell: told (types measured, types in all).

    Raises:
        EngineError: the device does not start, or has no memory free.
        PlanError: a type that ggml does not have.
    """
    names = TYPES if types is None else types
    kinds = [ggml.type_named(name) for name in names]
    cpu = device.kind == "cpu"
    meter = _Meter(cpu, threads, _share(device, threads, seconds, len(kinds)))
    with ExitStack() as stack:
        backend, size = stack.enter_context(Backend(device.name, threads)), _span(device)
        made = (Buffer(backend, size, layout) for layout in backend.layouts())
        *own, plain = map(stack.enter_context, made)
        samples: dict[tuple[int, int, str], Sample] = {}
        for done, kind in enumerate(kinds):
            tell(done, len(kinds))
            samples |= meter.measure(kind, plain, own)
        tell(len(kinds), len(kinds))
        samples |= meter.attend(plain)
        as_is, own_way = (_kernels(samples, layout, meter.calm) for layout in (_PLAIN, _OWN))
        caches = _rates(samples, _RECALL, _PLAIN, meter.calm)
        attention = _rates(samples, _ATTEND, _PLAIN, meter.calm)
        flops = _usual(as_is) if cpu else meter.multiply(plain)
        turn, operation = meter.speak(backend)
        link = 0.0 if cpu else _link(plain)
    return Rates(as_is, own_way, flops, link, operation, turn, meter.calm, caches, attention)


def _kernels(samples: Samples, layout: int, calm: bool) -> Kernels:
    """The rates of products of all types in a layout."""
    return Kernels(*(_rates(samples, phase, layout, calm) for phase in _PRODUCTS))


def _rates(samples: Samples, phase: int, layout: int, calm: bool) -> dict[str, float]:
    """The rates of all types in a phase and layout."""
    return {
        name: sample.rate(None if calm and sample.calm else _gain(samples, phase))
        for (at, how, name), sample in samples.items()
        if (at, how) == (phase, layout)
    }


def _gain(samples: Samples, phase: int) -> float:
    """What more threads gain in a phase if they are not held up: of batches, which memory does not
    hold up, no less than of products with one vector."""
    found = [1.0]
    for each in {phase, _READ}:
        tried = [s for (at, _, _), s in samples.items() if at == each and s.together is not None]
        gains = sorted(sample.alone / sample.best for sample in tried)
        found += gains[int(_LUCKY * (len(gains) - 1)) :][:1]
    return max(found)


def _share(device: Device, threads: int, seconds: float, types: int) -> float:
    """Seconds for one measurement that takes long enough to be repeated."""
    times = 2 if device.kind == "cpu" and threads > 1 else 1
    return seconds / times / (types + 2)


def _usual(kernels: Kernels) -> float:
    """FLOP/s of the types of most weights, of those that were measured."""
    usual = [rate for name in _GEMM if (rate := kernels.batches.get(name))]
    return harmonic_mean(usual or [*kernels.batches.values()] or [0.0])


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
        self._cpu, self._threads, self._seconds = cpu, threads, seconds
        self._taken = self._disturbed = 0

    @property
    def calm(self) -> bool:
        """Whether few measurements were disturbed."""
        return self._disturbed <= _DISTURBED * self._taken

    def measure(self, kind: ggml.Type, plain: Buffer, own: Sequence[Buffer]) -> Samples:
        """A type in all phases, plain and in a layout of the device's own, where it has one."""
        found = {}
        for phase in (_READ, _DENSE, _ROUTED) if self._cpu else (_READ,):
            for layout, memories in ((_PLAIN, [plain]), (_OWN, own)):
                with self._products(phase, memories, kind) as products:
                    if products:
                        work = products.step_flops if phase else products.step_bytes
                        sample = self._time(products, _BRIEF if phase else self._seconds)
                        found[phase, layout, kind.name] = replace(sample, work=work)
        return found

    def _products(
        self, phase: int, memories: Sequence[Buffer], kind: ggml.Type
    ) -> AbstractContextManager[Products | None]:
        if phase == _DENSE:
            return _first(memories, kind, (_ROWS, _SHAPE[1]), 1, _DENSE_BATCH)
        if phase == _ROUTED:
            return _first(memories, kind, (_ROWS, _SHAPE[1]), _USED, _SHARE, _USED)
        matrix = _SHAPE[0] * kind.row_bytes(_SHAPE[1])
        # A card is told once for many products: each alone would be over before it is asked about.
        most = memories[0].size // 2 // matrix if memories else 0
        count = _USED if self._cpu else max(_USED, most // _USED * _USED)
        return _first(memories, kind, _SHAPE, count, used=_USED)

    def attend(self, memory: Buffer) -> Samples:
        """Attention of a token, and of a batch, to caches of each type."""
        found = {}
        for name in _CACHES:
            for phase in (_RECALL, _ATTEND):
                sample = self._attended(phase, memory, ggml.type_named(name), _HEADS)
                if (
                    sample and not self._cpu and sample.best < _SHORT
                ):  # telling a card is most of it
                    sample = self._attended(phase, memory, ggml.type_named(name), _MORE_HEADS)
                if sample:
                    found[phase, _PLAIN, name] = sample
        return found

    def _attended(
        self, phase: int, memory: Buffer, kind: ggml.Type, heads: tuple[int, int, int]
    ) -> Sample | None:
        """Of so many heads; None if the device does not attend to this type."""
        queries, blocks, seconds = 1, _BLOCKS, self._seconds
        if phase == _ATTEND:
            queries, blocks, seconds = _DENSE_BATCH if self._cpu else _BATCH, 1, _BRIEF
        elif heads == _MORE_HEADS:
            blocks = max(1, memory.size // (2 * Attention.block_bytes(kind, *heads[:2])))
        with Attention(memory, kind, queries, *heads, blocks) as attention:
            if not attention.supported:
                return None
            # A CPU goes over keys and values anew for each head of queries.
            read = attention.step_bytes * (attention.sharing if self._cpu else 1)
            work = attention.step_flops if phase == _ATTEND else read
            return replace(self._time(attention, seconds), work=work)

    def multiply(self, memory: Buffer) -> float:
        """FLOP/s of a card's products with a batch, over types of which a model may have most."""
        flops = seconds = 0.0
        for name in _GEMM:
            done, time = self._batch(memory, ggml.type_named(name), 1)
            if done and time < _SHORT:  # telling a card takes part of that: many at once
                done, time = self._batch(memory, ggml.type_named(name), _MANY)
            flops, seconds = flops + done, seconds + time
        return flops / seconds if seconds else 0.0

    def _batch(self, memory: Buffer, kind: ggml.Type, count: int) -> tuple[float, float]:
        """FLOP of a step and its seconds; 0 if the device does not multiply the type."""
        most = memory.size // (2 * _LARGE[0] * kind.row_bytes(_LARGE[1]))
        with _first([memory], kind, _LARGE, min(count, most), batch=_BATCH) as products:
            if products is None:
                return 0.0, 0.0
            return products.step_flops, self._time(products, self._seconds).best

    def speak(self, backend: Backend) -> tuple[float, float]:
        """Seconds of the smallest computation, and of one operation more.

        With all threads, which wait for each other after every operation, unless others hold them
        up.
        """
        few, many = 1, 257
        times: list[float] = []
        for count in (few, many):
            with Sums(backend, count) as sums:
                sample = self._time(sums, self._seconds, gains=False)
            times.append((sample.calm and sample.together) or sample.best)
        return times[0], max(0.0, times[1] - times[0]) / (many - few)

    def _time(self, products: Steps | Sums, seconds: float, gains: bool = True) -> Sample:
        """A step, measured for so many seconds.

        gains: whether more threads are faster, unless something holds them up.
        """
        self._taken += 1
        if not self._cpu or self._threads == 1:
            time, calm = _fast_end(products.step, seconds)
            self._disturbed += not calm
            return Sample(0.0, time, time, calm)
        products.backend.set_threads(1)
        alone, _ = _fast_end(products.step, seconds)
        if self._disturbed > _SEEN and not self.calm:  # threads that wait would only take longer
            self._disturbed += 1
            return Sample(0.0, alone, None, False)
        products.backend.set_threads(self._threads)
        together, calm = _fast_end(products.step, seconds)
        calm &= not gains or together < _CALM * alone
        self._disturbed += not calm
        return Sample(0.0, alone, together, calm)


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
