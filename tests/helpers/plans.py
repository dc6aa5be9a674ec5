"""Plans for requests one at a time, where a test is about the paper's objectives."""

import hypsolve as hs


def alone(arguments):
    """Name the objective in seconds, unless the arguments name one or a method."""
    if "objective" in arguments or "method" in arguments:
        return arguments
    is_serial = arguments.get("runtime") == "llama.cpp"
    return {**arguments, "objective": "path" if is_serial else "bottleneck"}


def plan_alone(model, network, **arguments):
    """Call `hypsolve.plan` for the bottleneck, or for the path of a serial runtime."""
    return hs.plan(model, network, **alone(arguments))


def query_alone(model, network, **arguments):
    """Return the query that `plan_alone` answers."""
    return hs.PlanQuery.of(model, network, **alone(arguments))
