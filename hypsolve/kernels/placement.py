"""The cheapest units that together host all layers of a model."""

import numpy as np

from hypsolve.kernels.jit import threaded_kernel

NONE, AS_MIDDLE, AS_FIRST, AS_LAST = 0, 1, 2, 3


@threaded_kernel
def cheapest_cover(hosted, price, copies, n_stages, n_layers, cost, choice):
    """Fill in the least price of units that host all layers in so many stages, for each rate.

    A dynamic program over the copies of units. ``table[k, ends, n]`` is the least price of k
    units, taken from the copies so far, that host n layers; the bits of `ends` say whether one
    of them is the first stage and whether one is the last.

    Parameters
    ----------
    hosted : ndarray of int, shape (3, n_units, n_rates)
        Largest number of layers of a unit as the first stage, between, and as the last stage;
        negative if it can host none.
    price : ndarray, shape (n_units,)
    copies : ndarray of int, shape (n_units,)
    n_stages, n_layers : int
        At least 2 stages.
    cost : ndarray, shape (n_rates,)
        Filled in; inf where no units host all layers.
    choice : ndarray of uint8, shape (n_copies, n_stages + 1, 4, n_layers + 1)
        Filled in for the last rate: as what each copy was taken to reach an entry of the table,
        0 if it was not.
    """
    first, middle, last = hosted[0], hosted[1], hosted[2]
    table = np.zeros((n_stages + 1, 4, n_layers + 1))
    for rate in range(cost.shape[0]):
        table[:] = np.inf
        table[0, 0, 0] = 0.0
        at = 0
        for unit in range(len(price)):
            as_first, between = first[unit, rate], middle[unit, rate]
            as_last = last[unit, rate]
            for _ in range(copies[unit]):
                for k in range(min(at + 1, n_stages), 0, -1):
                    for ends in range(4):
                        for n in range(n_layers + 1):
                            best, how = table[k, ends, n], NONE
                            if between > 0:
                                value = table[k - 1, ends, max(0, n - between)] + price[unit]
                                if value < best:
                                    best, how = value, AS_MIDDLE
                            if ends & 1 and as_first >= 0:
                                value = table[k - 1, ends - 1, max(0, n - as_first)]
                                value += price[unit]
                                if value < best:
                                    best, how = value, AS_FIRST
                            if ends & 2 and as_last >= 0:
                                value = table[k - 1, ends - 2, max(0, n - as_last)]
                                value += price[unit]
                                if value < best:
                                    best, how = value, AS_LAST
                            table[k, ends, n] = best
                            choice[at, k, ends, n] = how
                at += 1
        cost[rate] = table[n_stages, 3, n_layers]


def warm_up():
    """Compile the dynamic program on one unit."""
    cheapest_cover(
        np.ones((3, 1, 1), np.int64), np.ones(1), np.full(1, 2), 2, 2, np.zeros(1),
        np.zeros((2, 3, 4, 3), np.uint8),
    )  # fmt: skip
