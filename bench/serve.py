"""Does the server hold up? Clients that talk at once, leave at random, and keep secrets.

    PYTHONPATH=. python bench/serve.py [FILE] [--minutes 10] [--clients 8] [--parallel 8]

`gemcut serve` runs in a process of its own, asked by OpenAI's client. Before the load every prompt
is answered alone. Under load, each client

* hangs up in the middle of some answers, streamed or not;
* has a secret, which a grammar lets it alone say: no answer may hold another's;
* compares greedy answers, token by token, with what the same prompt got alone. How far the
  probabilities of equal tokens differ is the noise that the shape of a batch makes. Where an answer
  diverges, the two likeliest tokens have to be within that noise. With --parallel 1 every prompt
  is read anew, and nothing may differ at all.

The server's memory is sampled all along; after a tenth of the time as warm-up, its growth is the
median of the last tenth against that of the first.
"""

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from threading import Event, Lock, Thread
from typing import Any

import httpx
import openai
from common import GEMCUT, Cell, Table, demo_file, record

CLAIM = (
    "The server holds up: clients that talk at once and leave at random, and no answer that is "
    "lost or another's."
)
_BATCH_NOISE = 2.0  # times the noise that two probabilities may be apart: each has its own
_WORDS = "add parse token list file point read write name path size text line index value".split()
Told = list[list[tuple[str, float]]]  # of each token the likeliest ones, with log-probabilities


@dataclass
class Findings:
    """What the clients saw; one of them writes at a time."""

    lock: Lock = field(default_factory=Lock)
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    noise: float = 0.0  # largest difference of a token's log-probability to what it was alone
    gaps: list[float] = field(default_factory=list)  # alone, of the two likeliest at a divergence

    def count(self, what: str) -> None:
        """One more of something."""
        with self.lock:
            self.counts[what] += 1

    def fail(self, what: str) -> None:
        """Something that must not be."""
        with self.lock:
            self.failures.append(what)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--parallel", type=int, default=8)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--tokens", type=int, default=48, help="of an answer")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    path = arguments.file or demo_file("bf16")
    with serving(path, arguments) as (process, url):
        found, memory = load(process, url, arguments)
        metrics = httpx.get(f"{url}/metrics").text
        process.send_signal(signal.SIGTERM)
        if code := process.wait(60):
            found.fail(f"the server ended with {code}")
    growth = report(found, memory, metrics, arguments)
    raise SystemExit(bool(found.failures) or growth > 0.02)


@contextmanager
def serving(path: Path, arguments: argparse.Namespace) -> Iterator[tuple[Any, str]]:
    """The server's process, and where it answers; what it says must be nothing but that."""
    shape = ["-c", arguments.context, "--parallel", arguments.parallel, "-t", arguments.threads]
    command = [*GEMCUT, "serve", str(path), *map(str, shape), "--port", "0"]
    with tempfile.TemporaryFile("w+") as said:
        with subprocess.Popen(command, stderr=said) as process:
            try:
                yield process, _url(process, said)
            finally:
                process.kill()
        said.seek(0)
        if "Traceback" in (text := said.read()):
            sys.exit(f"the server failed:\n{text[-4000:]}")


def _url(process: Any, said: Any) -> str:
    while process.poll() is None:
        time.sleep(0.2)
        if found := re.search(r"http://\S+:\d+", os.pread(said.fileno(), 1 << 16, 0).decode()):
            return found[0]
    said.seek(0)
    raise SystemExit(f"the server did not start:\n{said.read()}")


def load(process: Any, url: str, arguments: argparse.Namespace) -> tuple[Findings, list[int]]:
    """Let all clients talk; what they saw, and the memory each second in bytes."""
    found, over = Findings(), Event()
    clients = [Client(number, url, arguments, found) for number in range(arguments.clients)]
    for client in clients:
        client.learn()
    threads = [Thread(target=client.talk, args=(over,)) for client in clients]
    for thread in threads:
        thread.start()
    memory, end = [], time.monotonic() + 60 * arguments.minutes
    while time.monotonic() < end and process.poll() is None:
        memory.append(resident(process.pid))
        time.sleep(1)
    over.set()
    for thread in threads:
        thread.join(120)
    return found, memory


class Client:
    """Someone who asks, again and again, and checks what comes back."""

    def __init__(
        self, number: int, url: str, arguments: argparse.Namespace, found: Findings
    ) -> None:
        self._tokens, self._found = arguments.tokens, found
        self._anew = {"cache_prompt": False} if arguments.parallel == 1 else {}
        self._chance = random.Random(1000 * arguments.seed + number)
        self._secret = f"secret-{number}-{self._chance.randrange(10**6)}"
        words = [" ".join(self._chance.choices(_WORDS, k=2 ** self._chance.randrange(2, 8)))]
        self._prompts = [f"# {self._secret}\n{words[0]}", f"def {self._secret[:8]}(x):"]
        self._alone: dict[str, Told] = {}
        self._client = openai.OpenAI(
            base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300
        )

    def learn(self) -> None:
        """What each prompt gets alone."""
        for prompt in self._prompts:
            self._alone[prompt] = self._probabilities(prompt)

    def talk(self, over: Event) -> None:
        """Until it is over."""
        acts = (self._compare, self._compare, self._tell, self._leave, self._hang_up, self._shape)
        while not over.is_set():
            act = self._chance.choice(acts)
            try:
                act()
                self._found.count(act.__name__.strip("_"))
            except Exception as error:
                self._found.fail(f"{act.__name__}: {type(error).__name__}: {error}")

    def _ask(self, prompt: str, **options: Any) -> Any:
        messages = [{"role": "user", "content": prompt}]
        asked = {"model": "any", "messages": messages, "temperature": 0} | options
        return self._client.chat.completions.create(**{"max_tokens": self._tokens, **asked})

    def _probabilities(self, prompt: str) -> Told:
        asked = {"logprobs": True, "top_logprobs": 2, "extra_body": self._anew}
        choice = self._ask(prompt, **asked).choices[0]
        self._check(choice.message.content)
        told = choice.logprobs.content if choice.logprobs else []
        return [[(each.token, each.logprob) for each in t.top_logprobs] for t in told]

    def _compare(self) -> None:
        """A greedy answer, with what it was alone."""
        prompt = self._chance.choice(self._prompts)
        for alone, now in zip(self._alone[prompt], self._probabilities(prompt), strict=False):
            if alone[0][0] != now[0][0]:
                with self._found.lock:
                    self._found.gaps.append(alone[0][1] - alone[1][1])
                return
            with self._found.lock:
                self._found.noise = max(self._found.noise, abs(alone[0][1] - now[0][1]))

    def _tell(self) -> None:
        """The secret, and nothing else."""
        grammar = f'root ::= "{self._secret}"'
        said = self._ask(self._prompts[0], extra_body={"grammar": grammar})
        if said.choices[0].message.content != self._secret:
            self._found.fail(f"{said.choices[0].message.content!r} instead of {self._secret}")

    def _leave(self) -> None:
        """Hang up after some parts of an answer."""
        after = self._chance.randrange(1, 12)
        options: dict[str, Any] = {"stream": True, "temperature": 1.2, "max_tokens": 400}
        with self._ask(self._chance.choice(self._prompts), **options) as stream:
            for number, chunk in enumerate(stream):
                self._check(chunk.choices[0].delta.content or "")
                if number == after:
                    return

    def _hang_up(self) -> None:
        """Do not wait for the whole of an answer."""
        patient = self._client.with_options(timeout=self._chance.uniform(0.02, 0.5))
        asked = {"messages": [{"role": "user", "content": self._prompts[0]}], "model": "any"}
        try:
            patient.chat.completions.create(**asked, max_tokens=400, temperature=1.2)  # type: ignore[call-overload]
        except openai.APITimeoutError:
            pass

    def _shape(self) -> None:
        """JSON of a schema that holds the secret."""
        schema = {"type": "object", "properties": {"key": {"const": self._secret}}}
        closed = schema | {"required": ["key"], "additionalProperties": False}
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": closed}}
        said = self._ask(self._prompts[1], response_format=form).choices[0].message.content
        if self._secret not in said:
            self._found.fail(f"{said!r} without {self._secret}")
        self._check(said)

    def _check(self, text: str | None) -> None:
        """No secret but one's own."""
        for secret in re.findall(r"secret-\d+-\d+", text or ""):
            if not self._secret.startswith(secret):
                self._found.fail(f"{self._secret} was told {secret}")


def resident(pid: int) -> int:
    """Bytes of a process in RAM."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return 1024 * int(line.split()[1])
    return 0


def report(
    found: Findings, memory: list[int], metrics: str, arguments: argparse.Namespace
) -> float:
    """Print what was found; the growth of the memory, as a share."""
    steady = memory[len(memory) // 10 :]
    tenth = max(1, len(steady) // 10)
    first, last = median(steady[:tenth]), median(steady[-tenth:])
    growth = last / first - 1
    far = [gap for gap in found.gaps if gap > _BATCH_NOISE * found.noise]
    if arguments.parallel == 1 and (found.gaps or found.noise):
        found.fail("an answer differs from what it was alone")
    if far:
        found.fail(f"{len(far)} answers diverged beyond the noise, by {max(far):.4f}")
    print(f"{arguments.clients} clients, {arguments.parallel} slots, {arguments.minutes:g} minutes")
    print("  requests   " + ", ".join(f"{n} {what}" for what, n in found.counts.items()))
    print("  jobs       " + ", ".join(f"{n:.0f} {how}" for how, n in _ended(metrics).items()))
    print(f"  noise      {found.noise:.4f} of a log-probability, by the shape of a batch")
    print(
        f"  diverged   {len(found.gaps)} of {found.counts['compare']} greedy answers, all at ties "
        f"within {max(found.gaps, default=0):.4f}"
    )
    print(f"  memory     {first / 1e6:.1f} to {last / 1e6:.1f} MB: {growth:+.2%}")
    print(f"  failures   {len(found.failures)}")
    asked: list[list[Cell]] = [["requests", sum(found.counts.values())]]
    asked += [[f"of them: {what.replace('_', ' ')}", n] for what, n in found.counts.items()]
    asked += [[f"jobs that ended: {how}", int(n)] for how, n in _ended(metrics).items()]
    rows: list[list[Cell]] = [
        *asked,
        ["greedy answers that part from what they were alone", len(found.gaps)],
        ["how far apart the two likeliest tokens were there", max(found.gaps, default=0.0)],
        ["how far batches move a log-probability", found.noise],
        ["memory at first, MB", first / 1e6],
        ["memory at last, MB", last / 1e6],
        ["failures, foreign secrets among them", len(found.failures)],
    ]
    title = (
        f"{arguments.clients} clients, {arguments.parallel} slots, {arguments.minutes:g} minutes"
    )
    record(f"serve-{arguments.parallel}", CLAIM, [Table(title, ("", ""), rows)])
    for failure in found.failures[:20]:
        print(f"    {failure}")
    return growth


def _ended(metrics: str) -> Mapping[str, float]:
    found = re.findall(r'gemcut_answers_total\{end="(\w+)"\} (\S+)', metrics)
    return {how: float(count) for how, count in found}


if __name__ == "__main__":
    main()
