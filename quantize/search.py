"""The search: what the program is asked, and where on its frontier the answer is taken.

At one end of the frontier is the least predicted loss that fits, at the other what is fastest (or,
where no machine is planned for, smallest) within the default range of types. Between them a second
of a token's time has a price in loss: that of the straight line from end to end leads to the
frontier's knee, which is the balance.
"""

import math
from dataclasses import replace
from functools import cached_property

from gemcut.errors import BudgetError
from gemcut.gguf_layout import file_size
from gemcut.quantize import choose
from gemcut.quantize.binding import binding
from gemcut.quantize.choices import Choices
from gemcut.quantize.options import Builder
from gemcut.quantize.outcome import Task
from gemcut.quantize.pricing import Pricing
from gemcut.quantize.priors import prior_sensitivity
from gemcut.quantize.reporter import Reporter
from gemcut.runtime.memory.ledger import fixed, rooms
from gemcut.runtime.placement.problem import LOSS, SECONDS, SIZE, Aim, Problem, Solution
from gemcut.runtime.placement.program import improved, place, solve
from gemcut.runtime.speed.throughput import Prices, active_shares, starting_seconds

GAP, ROUGH = 1e-3, 1e-2  # of what is chosen, and of what it is compared with
_LAST = 0.01  # nats that a second of a token is worth where loss comes first: 1e-5 for 1 ms
_SPARE = 4 << 10  # bytes by which the headers of files may differ that are equally small
_TINY = 1e-3  # of the price of a second: what loss still counts where time comes first


class Search:
    """One task, with its choices and solutions."""

    def __init__(self, task: Task, known: Solution | None = None) -> None:
        """Build the choices.

        Args:
            known: what is chosen for the same task without types per expert.

        Raises:
            BudgetError, PlanError, SensitivityError: nothing can be chosen.
        """
        self.task, self.machine, self.known = task, task.priced, known
        self.sensitivity = task.sensitivity or prior_sensitivity(
            task.model, task.weighted, task.statistics if task.request.per_expert else None
        )
        names = [tensor.name for tensor in task.model.tensors]
        self.shares = active_shares(task.model.metadata, names)
        self.places = tuple(p.name for p in self.machine.places) if self.machine else ("",)
        self.needs = fixed(task.model.metadata, task.context) if self.machine else None
        # A machine without RAM to plan with: what has to be on the host is there, and nothing else.
        self.all_on_cards = bool(self.machine and not self.machine.host.memory)
        if self.all_on_cards and self.machine and not self.machine.cards:
            raise BudgetError("no RAM and no card: give --vram, or more --ram")
        self.choices = self._build()
        self.report = Reporter(
            task, self.sensitivity, self.choices, self.shares, self.places, self.needs
        )

    def _build(self) -> Choices:
        task = self.task
        return Builder(
            task.model,
            task.request,
            task.weighted,
            Pricing(self.sensitivity, self.shares, self.machine, self.needs),
            self.places,
            roams=not self.all_on_cards,
        ).build()

    @property
    def axis(self) -> Aim:
        """What is weighed against loss: time, or size where no machine is planned for."""
        return SECONDS if self.machine else SIZE

    def priced(self, price: float) -> Aim:
        """Loss, with a price for the other axis."""
        return Aim(loss=1, seconds=price) if self.machine else Aim(loss=1, size=price)

    @cached_property
    def problem(self) -> Problem:
        """The program of the task, without what was asked for."""
        items, machine, needs = self.choices.items, self.machine, self.needs
        if machine is None or needs is None:
            return Problem(items)
        room = [float(bytes_) for bytes_ in rooms(machine, needs)]
        if needs.offloads:  # a card stages tensors in the room that keys and values are unpacked in
            room[1:] = [bytes_ + needs.dequantized for bytes_ in room[1:]]
        if self.all_on_cards:
            room[0] = math.inf
        prices = Prices(machine, needs, {})
        reads = tuple(
            tuple(prices.reading(block, each.name) for each in machine.places)
            for block in range(len(needs.caches))
        )
        return Problem(
            items,
            tuple(room),
            needs.caches,
            reads,
            needs.dequantized if needs.offloads else None,
            not self.all_on_cards,
            machine.sync,
            starting_seconds(machine, len(items)),
        )

    @cached_property
    def bounded(self) -> Problem:
        """The program within all that was asked for; a size still counts tensors alone."""
        request, rescale = self.task.request, self.task.rescale
        size = math.inf if request.size is None else request.size
        if request.bpw is not None:
            size = int(request.bpw * self.task.model.weights / 8)
        loss = math.inf
        if request.max_kld is not None:
            loss = max(0.0, (request.max_kld - rescale.floor) / rescale.scale)
        seconds = math.inf if request.min_speed is None else 1 / request.min_speed
        return replace(self.problem, size=size, loss=loss, seconds=seconds)

    def choose(self) -> tuple[Solution, Aim]:
        """What is asked for, and the aim that it minimises.

        Raises:
            BudgetError: there is none.
        """
        aim = self._aim
        found = self.chosen(aim)
        if found is None:
            raise self._refusal()
        return found, aim

    def is_run(self, solution: Solution) -> bool:
        """Whether a run of a solution's file would have its weights lie as they are priced."""
        run = self.report.run(solution)
        return run is None or run.loading == self.task.loading

    def chosen(self, aim: Aim) -> Solution | None:
        """The best for an aim within all that was asked for; None: there is none."""
        problem = replace(self.bounded, aim=aim)
        if self.task.request.preference == "speed" and self.task.request.max_kld is None:
            problem = self._within_default(problem) or problem
        if self.task.request.size is not None:
            problem = self._with_header(problem)
        return self._fitting(problem, GAP)

    @property
    def _aim(self) -> Aim:
        preference = self.task.request.preference
        if preference == "quality":
            return LOSS
        return self.priced(self.price) if preference == "balance" else self._first_of_all

    @property
    def _first_of_all(self) -> Aim:
        """Time (or size) before anything else."""
        return replace(self.axis, loss=_TINY / self.price if self.price else 0.0)

    def _within_default(self, problem: Problem) -> Problem | None:
        """The same within the default range of types; None: nothing of that fits."""
        narrow = replace(problem, items=self.choices.within_default().items)
        return narrow if solve(replace(narrow, aim=self.axis, rough=True), ROUGH) else None

    def rough(self, aim: Aim) -> Solution | None:
        """Nearly the best for another aim, with nothing asked for but that it fits."""
        return solve(replace(self.problem, aim=aim, rough=True), ROUGH)

    @cached_property
    def best(self) -> Solution:
        """Nearly the least loss that fits. Raises BudgetError."""
        found = self.rough(self.priced(_LAST) if self.machine else LOSS)
        if found is None:
            raise self._refusal()
        return found

    def solved(self, problem: Problem, gap: float) -> Solution | None:
        """The best of a problem of this task; placed for speed too, which loss cannot ask for."""
        found = improved(problem, self.known, gap) if self.known else solve(problem, gap)
        if found and self.machine and problem.aim == LOSS:
            return place(self.problem, found)
        return found

    @cached_property
    def fastest(self) -> Solution:
        """Nearly the least time, or size, within the default range of types if that fits."""
        narrow = replace(self.problem, items=self.choices.within_default().items, rough=True)
        found = solve(replace(narrow, aim=self.axis), ROUGH) or self.rough(self.axis)
        if found is None:
            raise self._refusal()
        return found

    @property
    def _span(self) -> float:
        """The seconds, or bytes, between the fastest and the best."""
        return max(0.0, self._along(self.best) - self._along(self.fastest))

    @property
    def _worth(self) -> float:
        """The loss between them."""
        return max(0.0, self.fastest.loss - self.best.loss)

    def mixing_price(self, solution: Solution) -> float:
        """Loss that a second (or byte) is worth when types per expert are weighed against this.

        Where a limit alone was given, a percent of loss is worth a percent of a request's time.
        """
        request = self.task.request
        if request.preference != "quality":
            return self.price
        if request.prefer or not self.machine:  # quality whatever it takes, or within equal bytes
            return 0.0
        return solution.loss / self._along(solution)

    def equal(self, solution: Solution, other: Solution, price: float) -> float:
        """What a solution would lose in another one's time, or bytes, at this price."""
        return solution.loss + price * (self._along(solution) - self._along(other))

    def _along(self, solution: Solution) -> float:
        if self.machine is None:
            return float(solution.size)
        return solution.seconds + solution.reading

    @property
    def price(self) -> float:
        """Loss that a second (or byte) is worth at the knee: as on the line from end to end."""
        return self._worth / self._span if self._span else 0.0

    def _with_header(self, problem: Problem) -> Problem:
        """With the bytes of the size that are left for tensors, nearly: found out sooner."""
        found = self._fitting(replace(problem, rough=True), ROUGH)
        if found is None or self.task.request.size is None:
            return problem
        beside = self._file_size(found) - found.size
        return replace(problem, size=self.task.request.size - beside)

    def _fitting(self, problem: Problem, gap: float) -> Solution | None:
        """The best whose whole file keeps the size: a file's header is known when its types are."""
        size = math.inf if self.task.request.size is None else self.task.request.size
        while found := self.solved(problem, gap):
            if size == math.inf or (whole := self._file_size(found)) <= size:
                return found
            left = min(size - (whole - found.size), problem.size - 1)
            problem = replace(problem, size=left)
        return None

    def header(self, solution: Solution) -> int:
        """Bytes of a limited size that are not the tensors' of a solution."""
        if self.task.request.size is None:
            return 0
        return self._file_size(solution) - solution.size

    def _file_size(self, solution: Solution) -> int:
        plan, model = self.report.plan(solution), self.task.model
        return file_size(self.task.describe(plan), choose.infos(model, plan))

    def _refusal(self) -> BudgetError:
        """Why nothing fits."""
        beside = 0
        if self.task.request.size is not None and (least := self.rough(SIZE)):
            beside = self._file_size(least) - least.size + _SPARE
        request, model = self.task.request, self.task.model
        weights = None if request.bpw is None else model.weights
        expected = self.task.rescale.expected
        return BudgetError(binding(self.bounded, self.machine, beside, weights, expected))
