"""Flow through layers: the cheapest machines for one layer, and stages that hold all layers."""

import numpy as np

from hypsolve.kernels.jit import threaded_kernel


@threaded_kernel
def cheapest_covers(price, units, least, item):
    """Fill in the least price of items with so many units in total, for each number of units.

    Parameters
    ----------
    price : ndarray, shape (n_items,)
    units : ndarray of int, shape (n_items,)
        Positive. An item may be taken any number of times.
    least : ndarray, shape (n_units + 1,)
        Filled in: the least price of at least u units.
    item : ndarray of int, shape (n_units + 1,)
        Filled in: the item taken last; -1 for none.
    """
    least[0] = 0.0
    item[0] = -1
    for u in range(1, least.shape[0]):
        best, taken = np.inf, -1
        for i in range(price.shape[0]):
            value = price[i] + least[max(0, u - units[i])]
            if value < best:
                best, taken = value, i
        least[u] = best
        item[u] = taken


@threaded_kernel
def most_layers(uses, gain, limit, stride, price, slack, n_layers, layers, stage):
    """Fill in the most layers that stages of so many machines of each kind hold.

    A state is a number of machines of each kind, as a number with mixed radix; a stage leads
    from a state to a larger one. States that waste more than the slack are skipped.

    Parameters
    ----------
    uses : ndarray of int, shape (n_stages, n_kinds)
        Machines of each kind in each stage.
    gain : ndarray of int, shape (n_stages,)
        Layers of each stage.
    limit, stride : ndarray of int, shape (n_kinds,)
        Machines of each kind, and the value of one in the number of a state, ascending.
    price : ndarray, shape (n_kinds,)
    slack : float
        Largest price of a state in excess of its layers.
    n_layers : int
        The search stops at this many.
    layers : ndarray of int, shape (n_states,)
        Filled in: the most layers of exactly these machines; -1 if no stages take them.
    stage : ndarray of int, shape (n_states,)
        Filled in: the last stage, where `layers` is positive.

    Returns
    -------
    int
        The state at which the search stopped; -1 if no state holds all layers.
    """
    n_kinds = limit.shape[0]
    used = np.zeros(n_kinds, np.int64)
    layers[:] = -1
    layers[0] = 0
    for state in range(layers.shape[0]):
        if layers[state] < 0:
            continue
        rest = state
        spent = 0.0
        for kind in range(n_kinds - 1, -1, -1):
            used[kind] = rest // stride[kind]
            rest -= used[kind] * stride[kind]
            spent += used[kind] * price[kind]
        if spent - layers[state] > slack:
            continue
        for s in range(gain.shape[0]):
            then = state
            fits = True
            for kind in range(n_kinds):
                if used[kind] + uses[s, kind] > limit[kind]:
                    fits = False
                    break
                then += uses[s, kind] * stride[kind]
            if fits and layers[state] + gain[s] > layers[then]:
                layers[then] = layers[state] + gain[s]
                stage[then] = s
                if layers[then] >= n_layers:
                    return then
    return -1


def warm_up():
    """Compile both on one kind of machine."""
    one = np.ones(1, np.int64)
    cheapest_covers(np.ones(1), one, np.zeros(2), np.zeros(2, np.int64))
    most_layers(
        np.ones((1, 1), np.int64), one, one, one, np.ones(1), 1.0, 2, np.zeros(2, np.int64),
        np.zeros(2, np.int64),
    )  # fmt: skip
