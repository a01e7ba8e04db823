"""What the server counts, in Prometheus' text format. It holds no prompt and no name of a client.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gemcut.runtime.batching.jobs import Stats

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Histogram:
    """How often something took how long."""

    def __init__(self, bounds: tuple[float, ...] = _SECONDS) -> None:
        self._bounds, self._counts = bounds, [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def samples(self, name: str) -> Iterator[str]:
        """The lines: how many took at most so long, the sum of all and their number."""
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self._sum:.6f}"
        yield f"{name}_count {total}"


class Metrics:
    """The counts of a server; told in the thread of its event loop alone."""

    def __init__(self) -> None:
        self.started = time.time()
        self.requests: Counter[tuple[str, int]] = Counter()
        self.first_token, self.whole = Histogram(), Histogram()

    def text(self, stats: Stats | None) -> str:
        """The exposition: these counts, and the scheduler's if there is one."""
        lines = [
            *_series("requests_total", "counter", "Answered requests", self._requests()),
            *(_scheduled(stats) if stats else ()),
            *_series("resident_bytes", "gauge", "Memory in RAM", [("", resident_bytes())]),
            *_series("started_seconds", "gauge", "When, since 1970", [("", self.started)]),
        ]
        for name, what, histogram in (
            ("first_token_seconds", "From a request to its first token", self.first_token),
            ("answer_seconds", "From a request to the end of its answer", self.whole),
        ):
            lines += _head(name, "histogram", what)
            lines += histogram.samples(f"gemcut_{name}")
        return "\n".join(lines) + "\n"

    def _requests(self) -> Iterator[tuple[str, float]]:
        for (path, status), count in sorted(self.requests.items()):
            yield f'{{path="{path}",status="{status}"}}', count


class Counted:
    """Counts the answers of an application by path and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Collection[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        status = 499  # the client left

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, told)
        except Exception:
            status = 500 if status == 499 else status  # told by what stands around this
            raise
        finally:
            # Foreign paths share a name: a client must not make the server remember its inventions.
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.requests[path, status] += 1


def resident_bytes() -> int:
    """Bytes of this process in RAM, mapped files included; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    sizes = (int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
    return 1024 * next(sizes, 0)


def _scheduled(stats: Stats) -> Iterator[str]:
    tokens = {
        "prompt": stats.prompt_tokens,
        "cached": stats.cached_tokens,
        "answer": stats.answer_tokens,
    }
    cells = {"used": stats.cells_used, "all": stats.cells}
    jobs = {"active": stats.active, "waiting": stats.waiting}
    yield from _series("tokens_total", "counter", "Tokens", _by("kind", tokens))
    yield from _series("answers_total", "counter", "Ended answers", _by("end", stats.finished))
    yield from _series("answers_in_progress", "gauge", "Answers now", _by("state", jobs))
    yield from _series("cells", "gauge", "Tokens of room in the cache", _by("kind", cells))
    for name, what, value in (
        ("preempted_total", "Answers that had to wait again for room", stats.preempted),
        ("busy_seconds_total", "Time spent computing", stats.busy_seconds),
    ):
        yield from _series(name, "counter", what, [("", value)])


def _by(label: str, counts: Mapping[Any, float]) -> Iterator[tuple[str, float]]:
    for name, count in sorted(counts.items()):
        yield f'{{{label}="{name}"}}', count


def _series(name: str, kind: str, what: str, samples: Iterable[tuple[str, float]]) -> Iterator[str]:
    yield from _head(name, kind, what)
    for labels, value in samples:
        yield f"gemcut_{name}{labels} {value:.12g}"


def _head(name: str, kind: str, what: str) -> Iterator[str]:
    yield f"# HELP gemcut_{name} {what}."
    yield f"# TYPE gemcut_{name} {kind}"
