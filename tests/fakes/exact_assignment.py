"""The exact solution of a batch assignment, as a mixed-integer linear programme."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import lil_array

from drafthouse.scheduling.assignment import NO_SLOT, Candidate, Limits, Prices

Floats = NDArray[np.float64]


def exact_objective_ns(candidates: Sequence[Candidate], cycle_ns: Floats, limits: Limits, prices: Prices) -> float | None:
    """The least objective of `drafthouse.scheduling.assignment.assign`; None when nothing fits the limits.

    Variables: x_i chosen; s_i begins a run; y_ij draft token j of i verified (integral by itself once the others are); z_BT the shape.
    """
    count, shapes = len(candidates), _shapes(cycle_ns, limits, count=len(candidates))
    draft = [(index, chance) for index, candidate in enumerate(candidates) for chance in candidate.chances]
    first_y, first_z = 2 * count, 2 * count + len(draft)
    weights = [prices.worth_ns * (1 + prices.ageing * candidate.rounds_waited) for candidate in candidates]
    uncached = np.array([candidate.num_uncached for candidate in candidates], float)
    cost = np.zeros(first_z + len(shapes))
    cost[:count] = prices.token_ns * uncached - weights
    cost[count:first_y] = prices.run_ns
    cost[first_y:first_z] = [prices.token_ns - weights[index] * chance for index, chance in draft]
    cost[first_z:] = [cycle_ns[shape] for shape in shapes]
    constraints = _Rows(len(cost))
    y: list[list[int]] = [[] for _ in candidates]
    for number, (index, _) in enumerate(draft):
        y[index].append(first_y + number)
        constraints.at_most({first_y + number: 1, index: -1}, 0)  # only of chosen requests
    z = range(first_z, len(cost))
    constraints.equal({variable: 1 for variable in z}, 1)
    rows = {variable: -shape[0] for variable, shape in zip(z, shapes, strict=True)}
    constraints.equal({index: 1 for index in range(count)} | rows, 0)
    widths = {variable: -shape[1] for variable, shape in zip(z, shapes, strict=True)}
    by_slot = {candidate.slot: index for index, candidate in enumerate(candidates) if candidate.slot != NO_SLOT}
    for index, candidate in enumerate(candidates):
        constraints.at_most({index: uncached[index]} | {token: 1 for token in y[index]} | widths, 0)
        begins = {index: 1, count + index: -1}
        if candidate.slot != NO_SLOT and candidate.slot - 1 in by_slot:
            begins[by_slot[candidate.slot - 1]] = -1
        constraints.at_most(begins, 0)
    constraints.at_most(
        {index: uncached[index] for index in range(count)} | {first_y + number: 1 for number in range(len(draft))}, limits.max_tokens
    )
    constraints.at_most(
        {variable: cycle_ns[shape] for variable, shape in zip(z, shapes, strict=True)}
        | {count + index: prices.run_ns for index in range(count)},
        limits.max_latency_ns + prices.run_ns,
    )
    without_slot = {index: 1 for index, candidate in enumerate(candidates) if candidate.slot == NO_SLOT}
    constraints.at_most(without_slot, limits.num_free_slots)
    integrality = np.ones(len(cost))
    integrality[first_y:first_z] = 0
    options = {"mip_rel_gap": 1e-6, "time_limit": 5.0}
    result = milp(cost, constraints=constraints.build(), integrality=integrality, bounds=Bounds(0, 1), options=options)
    if result.x is None:
        return None
    potential = sum(weight * (1 + float(candidate.chances.sum())) for weight, candidate in zip(weights, candidates, strict=True))
    return float(result.mip_dual_bound) + potential - prices.run_ns


def _shapes(cycle_ns: Floats, limits: Limits, count: int) -> list[tuple[int, int]]:
    return [
        (rows, width)
        for rows in range(1, min(limits.max_rows, count) + 1)
        for width in range(1, limits.max_width + 1)
        if cycle_ns[rows, width] <= limits.max_latency_ns
    ]


class _Rows:
    """Constraints, one by one."""

    def __init__(self, num_variables: int) -> None:
        self._num_variables = num_variables
        self._rows: list[tuple[Mapping[int, float], float, float]] = []

    def at_most(self, coefficients: Mapping[int, float], limit: float) -> None:
        if np.isfinite(limit):
            self._rows.append((coefficients, -np.inf, limit))

    def equal(self, coefficients: Mapping[int, float], value: float) -> None:
        self._rows.append((coefficients, value, value))

    def build(self) -> LinearConstraint:
        matrix = lil_array((len(self._rows), self._num_variables))
        for number, (coefficients, _, _) in enumerate(self._rows):
            for variable, coefficient in coefficients.items():
                matrix[number, variable] = coefficient
        return LinearConstraint(matrix.tocsc(), [low for _, low, _ in self._rows], [high for _, _, high in self._rows])
