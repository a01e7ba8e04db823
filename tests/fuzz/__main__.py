"""Fuzz all targets, or some: starts workers, keeps what they find, prints how many cases ran.

.venv/bin/python -m tests.fuzz --minutes 60 --processes 2
.venv/bin/python -m tests.fuzz --target gguf --target imatrix --seed 7
.venv/bin/python -m tests.fuzz --target gguf --again build/fuzz/findings/gguf-SIGSEGV-1.input
"""

import argparse
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from gemcut.last_words import GIVES_UP
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS
from tests.fuzz.worker import INPUT

BUILD = Path("build/fuzz")
_START, _SILENCE = 900.0, 300.0  # seconds: until the first case, and between two words of a worker
_BATCH = 1_000_000  # numbers of cases that a process has for itself
_TELLING = re.compile(r'GGML_ASSERT.*|terminate called.*|what\(\).*|File ".*|.*Error: .*')


@dataclass
class Result:
    """What became of a target. findings: by signature, with what happened and how often."""

    name: str
    cases: int = 0
    seconds: float = 0.0
    processes: int = 0
    findings: dict[str, dict[str, Any]] = field(default_factory=dict)
    said: int = 0  # processes that llama.cpp ended over a file, with a line that says why

    def __str__(self) -> str:
        rate = self.cases / self.seconds if self.seconds else 0.0
        found = ", ".join(f"{f['what']} x{f['count']}" for f in self.findings.values())
        said = f", ended by llama.cpp {self.said}" if self.said else ""
        return (
            f"{self.name:22} {self.cases:8} cases {rate:7.0f}/s  {found or 'nothing found'}{said}"
        )


class Fuzzing:
    """The time of one target, in one process after the other."""

    def __init__(self, target: Target, seed: int, seconds: float) -> None:
        self._target, self._seed, self._seconds = target, seed, seconds
        self._folder = BUILD / "run" / target.name
        self.result = Result(target.name)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)

    def run(self) -> Result:
        """Until the time is over, or a process does not even begin."""
        while (left := self._seconds - self.result.seconds) > 0:
            if not self._process(left):
                break
        return self.result

    def _process(self, seconds: float) -> bool:
        """One process; whether it began with cases."""
        first = self.result.processes * _BATCH
        self.result.processes += 1
        module = [sys.executable, "-m", "tests.fuzz.worker"]
        arguments = [
            self._target.name,
            str(self._folder),
            str(self._seed),
            str(first),
            str(seconds),
        ]
        with (self._folder / "stderr").open("ab+") as errors:
            process = subprocess.Popen(
                module + arguments,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=_environment(self._folder),
            )
            assert process.stdout is not None
            began, ended, cases = self._listen(process.stdout)
            if not ended:
                process.kill()
            code = process.wait()
        self.result.cases += max(0, cases - first)
        self.result.seconds += time.monotonic() - began if began else 0.0
        if not ended:
            self._died(code, bool(began))
        return bool(began)

    def _listen(self, said: IO[bytes]) -> tuple[float, bool, int]:
        """When cases began (0: never), whether it came to its end, and the last case's number."""
        began, cases = 0.0, 0
        while select.select([said], [], [], _SILENCE if began else _START)[0]:
            line = said.readline()
            if not line:
                break
            event = json.loads(line)
            began = began or (time.monotonic() if "began" in event else 0.0)
            cases = event.get("cases", cases)
            if event.get("what") == "SIGABRT" and GIVES_UP in event["text"]:
                self.result.said += 1
            elif "what" in event:
                signature = event["signature"] or _signature(event["what"], event["text"])
                self._keep(event["what"], signature, event["text"])
            if event.get("ended"):
                return began, True, cases
        return began, False, cases

    def _died(self, code: int, began: bool) -> None:
        text = (self._folder / "stderr").read_text("utf-8", "replace")[-20_000:]
        what = signal.Signals(-code).name if code < 0 else f"exit {code}"
        if not began:
            what = f"no beginning, {what}"
        self._keep(what, _signature(what, text), text)

    def _keep(self, what: str, signature: str, text: str) -> None:
        """Note a finding, with the input if it is the first of its kind."""
        if known := self.result.findings.get(signature):
            known["count"] += 1
            return
        name = f"{self._target.name}-{what.replace(' ', '-')}-{len(self.result.findings) + 1}"
        self.result.findings[signature] = {"what": what, "count": 1, "name": name}
        folder = BUILD / "findings"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.txt").write_text(text)
        if (self._folder / INPUT).exists():
            shutil.copy(self._folder / INPUT, folder / f"{name}.input")
        print(f"{self._target.name}: {what}: {folder / name}.txt", flush=True)


def _signature(what: str, text: str) -> str:
    """What tells the end of a process from others: its last words, or where it was."""
    return what + ";".join(_TELLING.findall(text)[:6])


def again(target: Target, path: Path) -> None:
    """Run one input, as it is, in this process."""
    folder = BUILD / "run" / f"{target.name}-again"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(_environment(folder))
    print(repr(target.open(folder)(path.read_bytes()))[:1000])


def _environment(folder: Path) -> dict[str, str]:
    own = {
        "XDG_CACHE_HOME": str(folder.absolute() / "cache"),
        "XDG_STATE_HOME": str(folder.absolute() / "state"),
        "GGML_NO_BACKTRACE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    return {**os.environ, **own}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="for all targets together")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--target", action="append", choices=[t.name for t in TARGETS])
    parser.add_argument("--again", type=Path, metavar="INPUT", help="run this input alone")
    return parser.parse_args()


def main() -> int:
    """1 if something was found."""
    given = _arguments()
    chosen = [t for t in TARGETS if not given.target or t.name in given.target]
    if given.again:
        again(chosen[0], given.again)
        return 0
    shutil.rmtree(BUILD / "seeds", ignore_errors=True)
    seconds = given.minutes * 60 * given.processes / len(chosen)
    print(f"seed {given.seed}: {len(chosen)} targets, {seconds:.0f} s each", flush=True)

    def fuzzed(target: Target) -> Result:
        result = Fuzzing(target, given.seed, seconds).run()
        print(result, flush=True)
        return result

    with ThreadPoolExecutor(given.processes) as pool:
        results = [*pool.map(fuzzed, chosen)]
    found = sum(len(each.findings) for each in results)
    cases, minutes = sum(each.cases for each in results), sum(each.seconds for each in results) / 60
    rows = [{**vars(each), "findings": [*each.findings.values()]} for each in results]
    document = {"seed": given.seed, "cases": cases, "minutes": minutes, "targets": rows}
    (BUILD / "summary.json").write_text(json.dumps(document, indent=1) + "\n")
    print(f"{cases} cases in {minutes:.1f} minutes, {found} findings; {BUILD / 'summary.json'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
