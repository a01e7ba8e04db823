"""HiGHS, handed a formulation: its optimum, or a bound of it."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gemcut.errors import EngineError
from gemcut.runtime.placement.formulation import SCALE, Formulation
from gemcut.runtime.placement.problem import Chosen, Solution

if TYPE_CHECKING:
    import highspy

_TOLERANCE = 1e-9  # HiGHS' own lets a presolved bound be passed by 1e-7 of it, which are bytes here
_LOSS = 0.01  # nats: gaps of smaller losses are relative to it, since nobody can tell these apart
_FEASIBLE = 2  # HiGHS' kSolutionStatusFeasible


def optimum(program: Formulation, gap: float, start: Solution | None = None) -> Solution | None:
    """The best solution, up to a relative gap; None: there is none, or none was found in time.

    Args:
        start: a solution of the same problem, to be improved in a quarter of the time.

    Raises:
        EngineError: HiGHS failed.
    """
    if program.forced:
        ones = np.ones(len(program.columns.loss))
        return _solution(program, ones, 0.0) if program.holds else None
    solver = _solver(program, gap)
    if start is not None:
        _begin(program, solver, start)
    solver.run()
    status, info = solver.modelStatusToString(solver.getModelStatus()), solver.getInfo()
    if status not in ("Optimal", "Infeasible", "Time limit reached"):
        raise EngineError(f"HiGHS failed on a plan: {status}")
    if info.primal_solution_status != _FEASIBLE:
        return None
    values = np.asarray(solver.getSolution().col_value)
    return _solution(program, values, max(0.0, info.mip_gap))


def least_seconds(program: Formulation) -> float:
    """The least seconds if everything could be divided; infinity: nothing fits.

    Raises:
        EngineError: HiGHS failed.
    """
    if program.forced:
        least = program.problem.overhead + sum(program.columns.seconds)
        return least if program.holds else math.inf
    solver = _solver(program, 0.0, whole=False)
    solver.run()
    status = solver.modelStatusToString(solver.getModelStatus())
    if status == "Infeasible":
        return math.inf
    if status != "Optimal":
        raise EngineError(f"HiGHS failed on a plan: {status}")
    values = np.asarray(solver.getSolution().col_value)
    return program.problem.overhead + float(values @ np.array(program.columns.seconds))


def _solver(program: Formulation, gap: float, whole: bool = True) -> "highspy.Highs":
    import highspy

    solver = highspy.Highs()  # type: ignore[no-untyped-call]
    for option, value in {
        "output_flag": False,
        "mip_rel_gap": gap,
        "mip_abs_gap": gap * _LOSS * _unit(program) if program.problem.aim.loss else 0.0,
        "time_limit": program.problem.patience,
        "threads": 1,
        "random_seed": 0,
        "mip_feasibility_tolerance": _TOLERANCE,
        "primal_feasibility_tolerance": _TOLERANCE,
    }.items():
        solver.setOptionValue(option, value)
    solver.passModel(_model(program, highspy, whole))
    return solver


def _begin(program: Formulation, solver: "highspy.Highs", start: Solution) -> None:
    taken = {(name, each.option, each.place) for name, each in start.chosen.items()}
    known = {
        column: float((item.name, option, at) in taken)
        for column, (item, option, at) in program.columns.choices.items()
    }
    for home, chosen in zip(program.homes, start.homes, strict=True):
        known |= {column: float(at == chosen) for at, column in home.items()}
    solver.setOptionValue("time_limit", program.problem.patience / 4)
    solver.setSolution(len(known), np.array(list(known), np.int32), np.array([*known.values()]))


def _model(program: Formulation, highspy: Any, whole: bool) -> Any:
    cost, free, count = program.cost, program.columns.free, len(program.columns.loss)
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = count, len(program.rows)
    lp.col_cost_ = cost * _unit(program)
    lp.col_lower_ = np.array([free.get(column, (0, 1))[0] for column in range(count)], float)
    lp.col_upper_ = np.array([free.get(column, (0, 1))[1] for column in range(count)], float)
    kinds = highspy.HighsVarType
    if whole:
        lp.integrality_ = [
            kinds.kContinuous if column in free else kinds.kInteger for column in range(count)
        ]
    lp.row_lower_ = np.array([low for _, low, _ in program.rows])
    lp.row_upper_ = np.array([high for _, _, high in program.rows])
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lengths = [len(row) for row, _, _ in program.rows]
    lp.a_matrix_.start_ = np.concatenate([[0], np.cumsum(lengths)])
    lp.a_matrix_.index_ = np.array([column for row, _, _ in program.rows for column in row])
    lp.a_matrix_.value_ = np.array([v for row, _, _ in program.rows for v in row.values()])
    return lp


def _unit(program: Formulation) -> float:
    """What brings costs to a size that HiGHS' tolerances are made for."""
    return SCALE / max(float(np.abs(program.cost).max(initial=0.0)), 1e-300)


def _solution(program: Formulation, values: NDArray[np.float64], gap: float) -> Solution:
    columns, choices = program.columns, program.columns.choices
    whole = (column for column in range(len(values)) if column not in columns.free)
    taken = [column for column in whole if values[column] > 0.5]
    chosen = {
        choices[column][0].name: Chosen(*choices[column][1:])
        for column in taken
        if column in choices
    }
    homes = tuple(
        next(at for at, column in home.items() if values[column] > 0.5) for home in program.homes
    )
    places = range(len(program.problem.room))
    held = [sum(columns.held[column].get(at, 0) for column in taken) for at in places]
    return Solution(
        chosen,
        homes,
        sum(columns.loss[c] for c in taken),
        program.problem.overhead + sum(columns.seconds[c] for c in taken),
        sum(columns.size[c] for c in taken),
        tuple(held),
        gap,
        sum(columns.reading[c] for c in taken),
    )
