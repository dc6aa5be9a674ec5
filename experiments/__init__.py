"""Experiments as data, and their runner `python -m experiments.sweep`.

An experiment is an entry of a dictionary. This file runs one of your own, with a method of your
own; it prints a table and writes ``halves.csv``, ``halves.json`` and ``halves.md``::

    import sys

    import hypsolve as hs
    from experiments import sweep
    from experiments.definitions import EXPERIMENTS, Call, Experiment, Series
    from instances.scenarios import scenario

    def halves(instance, *, time_limit_s, seed):
        cuts = (0, instance.n_blocks // 2, instance.n_blocks)  # two tiers
        return hs.Outcome(hs.Status.FEASIBLE, hs.Partition(cuts))

    def build(n_requests, seed):
        return scenario("two-regions", "llama-3-8b", n_requests=n_requests, seed=seed)

    calls = (Call("hypsplit_dp"), Call(hs.Method(halves, "partition")))
    series = Series(axis="requests", build=build, values={"default": (5, 10)}, calls=calls)
    EXPERIMENTS["halves"] = Experiment(
        question="How good are halves?", series={"two-regions": series},
        n_seeds={"default": 2}, time_limit_s={"default": 5.0})
    if __name__ == "__main__":  # worker processes import this file
        sys.exit(sweep.main(["halves", *sys.argv[1:]]))

Tables and figures are optional: ``shown=Shown(tables=..., figures=...)`` names functions
``(name, DataFrame) -> {title or file name: table or figure}``; see `experiments.definitions`.
"""
