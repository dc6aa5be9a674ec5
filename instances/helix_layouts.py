"""Published layouts of Llama-70B on the clusters of `instances.helix_flow`.

Facts of the artefact of "Helix: Serving Large Language Models over Heterogeneous GPUs and
Network via Max-Flow" (ASPLOS'25), Thesys-lab/Helix-ASPLOS25 at commit 148b733, Apache-2.0: the
files ``ilp_sol.ini``, ``swarm_sol.ini`` and ``petals_sol.ini`` of
``model_placement/layout_single``,
``model_placement/layout_distributed`` and ``high_heterogeneity/layout_llama70b``.
"""

from hypsolve.problem.layer_layout import HostedRange
from instances.helix_flow import CLUSTERS

# Layers of each machine, in the order of their numbers, as first-stop; "-": none.
RANGES = {
    "published_helix": {
        "single-24": (
            "7-11 34-38 23-25 53-60 77-80 53-60 68-77 26-30 30-34 37-49 60-68 42-49 33-37 "
            "38-42 3-7 0-3 11-14 14-23 46-53 42-46 25-26 53-60 49-53 26-33"
        ),
        "regions-24": (
            "59-70 70-80 48-59 37-48 19-26 26-32 15-19 26-30 32-33 5-6 18-22 7-8 76-79 "
            "33-37 1-7 7-11 1-8 30-37 8-15 0-1 22-26 11-14 14-18 75-76"
        ),
        "single-42": (
            "27-31 19-29 45-48 56-59 29-41 9-19 66-69 13-16 19-27 60-63 9-13 48-56 27-31 "
            "41-45 16-19 59-60 63-66 48-56 39-45 12-13 69-77 2-8 69-77 1-8 59-66 9-13 "
            "9-13 39-56 2-3 41-45 79-80 63-77 39-45 63-80 69-77 49-60 77-79 0-2 45-49 8-9 "
            "31-39 77-80"
        ),
    },
    "published_swarm": {
        "single-24": (
            "44-48 60-64 56-60 40-44 52-56 36-40 12-16 48-52 76-80 8-12 4-8 32-36 72-76 "
            "68-72 28-32 64-68 60-64 0-4 24-28 56-60 52-56 20-24 48-52 16-20"
        ),
        "regions-24": (
            "12-16 8-12 4-8 0-4 44-48 40-44 60-64 56-60 52-56 48-52 76-80 72-76 68-72 "
            "64-68 36-40 32-36 28-32 24-28 20-24 16-20 60-64 56-60 52-56 48-52"
        ),
        "single-42": (
            "76-80 44-48 44-48 52-56 28-32 40-44 40-44 48-52 12-16 68-72 72-76 64-68 "
            "76-80 52-56 72-76 36-40 48-52 60-64 32-36 68-72 36-40 8-12 56-60 68-72 52-56 "
            "64-68 76-80 24-28 64-68 60-64 56-60 20-24 32-36 16-20 48-52 4-8 76-80 60-64 "
            "72-76 56-60 0-4 72-76"
        ),
    },
    "published_petals": {
        "single-24": (
            "7-14 34-38 76-80 4-11 72-76 53-60 30-42 26-30 30-34 11-23 60-72 42-49 60-64 "
            "38-42 0-7 26-30 76-80 14-26 46-53 42-46 0-4 53-60 49-53 72-79"
        ),
        "regions-24": (
            "7-19 7-19 57-69 68-80 50-57 19-26 30-34 26-30 48-52 26-30 46-50 34-38 61-65 "
            "57-61 0-7 34-41 41-48 19-26 50-57 0-7 69-73 42-46 38-42 30-34"
        ),
        "single-42": (
            "31-35 53-67 26-33 51-55 0-18 39-53 61-68 60-64 39-51 19-28 27-31 4-13 35-39 "
            "76-80 56-60 20-27 22-26 71-80 64-71 52-56 42-56 68-80 13-22 13-20 71-80 0-4 "
            "15-19 0-18 28-35 31-35 27-31 31-49 49-63 13-31 18-27 1-13 0-4 35-42 64-68 "
            "4-11 67-79 55-59"
        ),
    },
}
"""Layouts of Helix's solver, and of the rules of Swarm and Petals, by cluster."""


def published_ranges(method: str, cluster: str) -> tuple[HostedRange, ...]:
    """Return the layers that machines of a cluster hold in a published layout.

    Examples
    --------
    >>> print(published_ranges("published_helix", "single-24")[0])
    0-L4 7:11
    """
    names = [f"{n}-{kind}" for n, kind in enumerate(CLUSTERS[cluster][0].split())]
    found = []
    for name, held in zip(names, RANGES[method][cluster].split(), strict=True):
        if held != "-":
            start, stop = map(int, held.split("-"))
            found.append(HostedRange(name, start, stop))
    return tuple(found)
