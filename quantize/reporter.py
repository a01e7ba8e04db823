"""What solutions of a task come to: predicted losses and speeds, and the plan of one."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any

from gemcut.plan import Entry, Plan
from gemcut.quantize.choices import Choices, Way
from gemcut.quantize.identity import fingerprint, model_key, sensitivity_digest
from gemcut.quantize.layouts import Run, layouts, taken
from gemcut.quantize.mixtures import by_type
from gemcut.quantize.outcome import Point, Task
from gemcut.quantize.worth import Worth
from gemcut.roles import role_of
from gemcut.runtime.memory.ledger import Fixed, ledger
from gemcut.runtime.memory.tensors import Placed
from gemcut.runtime.placement.candidates import Loading
from gemcut.runtime.placement.problem import Chosen, Solution
from gemcut.runtime.speed.throughput import decode_speed, prefill_speed
from gemcut.sensitivity import Sensitivity
from gemcut.tensor_sensitivity import LocalError


@dataclass(frozen=True)
class Reporter:
    """Says what solutions of one task come to.

    shares: of each of the source's tensors, what a token reads. needs: what a context takes, if a
    machine is planned for.
    """

    task: Task
    sensitivity: Sensitivity  # measured, or believed
    choices: Choices
    shares: Mapping[str, float]
    places: tuple[str, ...]
    needs: Fixed | None

    def point(self, solution: Solution, label: str) -> Point:
        """What a solution comes to."""
        ways, run = self._ways(solution), self.run(solution)
        return Point(
            label,
            solution.size,
            8 * solution.size / self.task.model.weights,
            self.task.rescale.expected(solution.loss),
            self.task.rescale.scale * self._doubt(ways.values()),
            run.decode if run else None,
            run.prefill if run else None,
            sum(solution.held[1:]),
            solution.held[0],
            sum(way.below for way in ways.values()),
            gap=solution.gap,
        )

    def run(self, solution: Solution) -> Run | None:
        """What `gemcut run` would make of a solution's file; None: no machine is planned for."""
        machine, needs = self.task.machine, self.needs
        if machine is None or needs is None:
            return None
        shares = self._shares(self._ways(solution))
        placed, read = self._placed(solution), self._placed(solution, read=True)

        def predicted(loading: Loading) -> Run:
            priced = loading.priced(machine)
            return Run(
                loading,
                prefill_speed(priced, needs, placed, shares).per_second,
                decode_speed(priced, needs, read, shares).per_second,
            )

        return taken([predicted(each) for each in layouts(machine)], machine)

    def _shares(self, ways: Mapping[str, Way]) -> dict[str, float]:
        return {name: self.shares[way.tensor] for name, way in ways.items()}

    def _ways(self, solution: Solution) -> dict[str, Way]:
        return {
            name: self.choices.way(name, chosen.option) for name, chosen in solution.chosen.items()
        }

    def _doubt(self, ways: Iterable[Way]) -> float:
        """Standard error of a predicted loss: see `Sensitivity.predict`."""
        errors: dict[str, list[LocalError]] = {}
        for way in ways:
            if way.key and way.error:
                group = self.sensitivity.tensors[way.key].group
                errors.setdefault(group, []).append(way.error)
        return self.sensitivity.total(errors)[1]

    def _placed(self, solution: Solution, read: bool = False) -> list[Placed]:
        """The tensors of the file; `read`: bytes of experts in each type as tokens read them."""
        copied = {item.name for item in self.choices.items if item.copied}
        found = []
        for name, chosen in solution.chosen.items():
            way, size = self.choices.way(name, chosen.option), chosen.option.size
            routed = self.sensitivity.tensors[way.key].routed if read and way.key else ()
            found.append(
                Placed(
                    name,
                    way.type,
                    size,
                    self._weights[name],
                    self.places[chosen.place],
                    name in copied and chosen.place > 0,
                    kinds=by_type(way, size, routed) if way.experts else (),
                )
            )
        return found

    @cached_property
    def _weights(self) -> dict[str, int]:
        """Weights of every tensor that may be written."""
        counts = {tensor.name: tensor.weights for tensor in self.task.model.tensors}
        for name, parts in self.choices.fused.items():
            counts |= dict.fromkeys(parts, counts[name] // len(parts))
        return counts

    def plan(self, solution: Solution, worth: Worth | None = None) -> Plan:
        """The plan of a solution, with its ledger and predictions, and what mixtures are worth."""
        task, ways = self.task, self._ways(solution)
        entries = {
            name: self._entry(name, chosen, ways[name]) for name, chosen in solution.chosen.items()
        }
        label = task.request.preference
        point, context = self.point(solution, label), task.context
        plan = Plan(
            task.model.architecture,
            task.model.weights,
            solution.size,
            task.request.to_dict(),
            {
                "name": f"HiGHS {version('highspy')}",
                "gap": float(f"{solution.gap:.2g}"),
                "aim": label,
            },
            entries,
            self._sources,
            predicted=self._predicted(point, solution, worth),
        )
        if not (self.task.machine and self.needs):
            return plan
        names = ("n_ctx", "n_seq", "n_ubatch", "type_k", "type_v")
        return replace(
            plan,
            context={name: getattr(context, name) for name in names},
            machine=self.task.machine.to_dict(),
            ledger=ledger(self.task.machine, self.needs, self._placed(solution), _role),
        )

    @cached_property
    def _sources(self) -> dict[str, str | None]:
        model, given = self.task.model, self.task.sensitivity
        return {
            "model": fingerprint(model) if model.files else model_key(model),
            "imatrix": self.task.imatrix,
            "sensitivity": None if given is None else sensitivity_digest(given),
        }

    def _entry(self, name: str, chosen: Chosen, way: Way) -> Entry:
        return Entry(
            way.type,
            self.places[chosen.place] or None,
            way.padded_to,
            way.tensor != name,
            way.experts or None,
            error=_rounded(way.error.mean) if way.error and self.task.sensitivity else None,
        )

    def _predicted(self, point: Point, solution: Solution, worth: Worth | None) -> dict[str, Any]:
        probed = any(group.source == "probe" for group in self.sensitivity.groups.values())
        said = {
            "kld": _rounded(solution.loss),
            "kld_expected": _rounded(point.kld),
            "kld_se": _rounded(point.kld_se),
            "kld_by": "probe" if probed else "prior",
        }
        if worth and worth.enough and worth.without is not None:
            said["kld_without_experts"] = _rounded(worth.without)
        if self.task.machine is None:
            return said
        speeds = {"decode": _rounded(point.decode), "prefill": _rounded(point.prefill)}
        return said | speeds | {"speed_doubt": self.task.machine.doubt}


def _role(name: str) -> str:
    return role_of(name).name


def _rounded(value: float | None) -> float | None:
    """To five digits: more would be noise, and make files differ that say the same."""
    return None if value is None else float(f"{value:.5g}")
