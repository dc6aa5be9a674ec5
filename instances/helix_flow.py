"""Clusters of Helix, with its tokens per second by kind of machine and number of layers.

The numbers are those of the artefact of "Helix: Serving Large Language Models over
Heterogeneous GPUs and Network via Max-Flow" (ASPLOS'25), the repository
Thesys-lab/Helix-ASPLOS25 at commit 148b733 (Apache-2.0): its clusters, the rates that it
computes of its profiles, and the flow of its published layouts.
"""

from types import MappingProxyType

from hypsolve.problem import validation as valid
from hypsolve.problem.layer_flow import LayerFlowProblem, Place

N_LAYERS = {"llama-70b": 80, "llama-30b": 60}
ACTIVATION_BYTES = {"llama-70b": 16384, "llama-30b": 13312}
TOKEN_BYTES = 2
LAN_BYTES_PER_S = 1e9
"""Rate of every link of a cluster at one site."""

# fmt: off
# Tokens per second of a machine that holds 1, 2, ... layers.
RATES_24_70B = {
    "A100": (
        23833.869866324374, 11384.25466586348, 7201.412420877685, 5264.623373853506,
        4096.654503856875, 3124.1430780258565, 2595.6792854008463, 2045.6410473362616,
        1754.3818895649893, 1392.6348207247768, 1212.1768454598214, 952.1073984850639,
    ),
    "L4": (
        7557.863040102793, 3625.714747409144, 2171.878169270482, 1476.084625195014,
        1017.5727965236067, 747.7853772615942, 531.7025845523623,
    ),
    "T4": (
        5709.207939642649, 2434.367182876655, 1347.8665242379518, 757.8531857227841,
    ),
}
RATES_24_30B = {
    "A100": (
        7555.876016028454, 3778.4992641880967, 4200.104121006462, 3150.8685326354885,
        2127.2588361238077, 1771.6110047115474, 1517.7373827672375, 1327.2178171293538,
        1178.967501572904, 1061.0765330992463, 964.9262548736224, 884.8241114838899,
        817.0364608517115, 614.7079183006032, 573.2843381242975, 537.0630783012974,
        505.0451948348959, 477.02829858088376,
    ),
    "L4": (
        3379.926603654905, 1598.583162197636, 1066.2779674122148, 717.6353446029057,
        535.7796810645655, 414.2481166971491, 327.1924009099368, 240.49868817507928,
        213.90384669121946, 172.0179412402783, 137.5543373795387,
    ),
    "T4": (
        2320.6141453556415, 1072.1864541451182, 601.4390170560079, 451.0321705753655,
        323.3937970404552, 237.792742211922, 283.9875721902654,
    ),
}
RATES_42_70B = {
    "A100": (
        31327.48824168, 15363.279551201822, 9918.068148522412, 7039.204561394823,
        5430.023846014522, 4251.276760510205, 3405.7906874372643, 2847.018920112794,
        2339.853237718607, 1931.1066717812666, 1652.8563403342425, 1363.7115605076813,
    ),
    "V100": (
        14014.133945931637, 5890.150529184768, 3342.478445644334, 1982.1922450459729,
    ),
    "L4": (
        9111.475712841726, 4239.09921537417, 2563.308684571881, 1812.259319225061,
        1285.1663149066778, 916.8084304599614, 655.7302645941118,
    ),
    "L4x2": (
        17269.024239087856, 8426.916777076654, 5441.1437958088545, 3929.4163488723143,
        3061.0158000764795, 2461.6300598188254, 2030.4194892033968, 1712.8578828011186,
        1450.1829569024394, 1290.5286644408209, 1107.2196489629578, 964.2587357326439,
        838.5092406237612, 727.6868281421503,
    ),
    "T4": (
        6179.854336379162, 2911.5180570113494, 1622.365269146806, 927.6237095820143,
    ),
    "T4x2": (
        12194.216353126127, 5813.735195861901, 3663.6878979000326, 2706.099620526613,
        2121.353949938027, 1626.957296353798, 1271.797488145038, 1021.9130253401398,
        783.4518830358287,
    ),
    "T4x4": (
        20503.52633264538, 10085.51022930948, 6640.706606009952, 4892.242429600681,
        3841.2379804674774, 3136.81312868075, 2651.224496199008, 2268.5052804434536,
        1981.1405798345731, 1738.6341280367203, 1548.7335387543772, 1388.9746429268805,
        1281.5238540746047, 1180.0249990628508, 1071.1872894613132, 973.6391025344228,
        872.8949684656782, 781.2660852189994,
    ),
}

# Kinds of the machines, in the order of their numbers there.
SINGLE_24 = (
    "L4 T4 T4 L4 T4 L4 A100 T4 T4 A100 A100 L4 T4 T4 L4 T4 T4 A100 L4 T4 T4 L4 T4 L4"
)
REGIONS_24 = (
    "A100 A100 A100 A100 L4 L4 T4 T4 T4 T4 T4 T4 T4 T4 L4 L4 L4 L4 L4 L4 T4 T4 T4 T4"
)
SINGLE_42 = (
    "T4 L4x2 L4 V100 T4x4 L4x2 L4 V100 A100 T4x2 T4 T4x2 V100 T4 V100 L4 T4 T4x2 L4 T4 L4x2 "
    "A100 T4x2 L4 T4x2 T4 V100 T4x4 L4 T4 T4 T4x4 L4x2 T4x4 T4x2 A100 T4 L4 V100 L4 A100 T4"
)

# Three regions: links in 100,000 bytes per second, the same in both directions. Row a holds
# those between machine a and the machines a + 1, a + 2, and so on; two rows hold those from and
# to the coordinator.
# The regions are the machines 0 to 3, 4 to 13, and 14 to 23.
REGION_LINKS = (
    (13230, 12780, 12820, 112, 106, 140, 141, 107, 102, 146, 134, 132, 129, 119, 102, 148,
     106, 140, 101, 105, 111, 118, 125),
    (11500, 11740, 137, 146, 134, 103, 142, 113, 122, 124, 128, 116, 142, 128, 137, 102, 112,
     118, 118, 132, 136, 121),
    (11250, 117, 132, 144, 121, 135, 133, 122, 108, 124, 138, 125, 123, 144, 109, 132, 136,
     120, 116, 136, 141),
    (105, 132, 114, 105, 120, 114, 140, 107, 133, 144, 101, 134, 147, 145, 137, 133, 145,
     119, 110, 100),
    (12080, 13040, 12800, 11650, 11970, 12620, 12440, 11370, 12550, 120, 121, 145, 142, 117,
     135, 115, 145, 131, 149),
    (11410, 13120, 11260, 12540, 12470, 12940, 12170, 11900, 122, 103, 135, 123, 106, 110,
     147, 107, 119, 108),
    (13700, 12260, 13440, 13540, 12490, 12920, 12770, 117, 145, 102, 113, 142, 136, 103, 143,
     111, 101),
    (12070, 11620, 13670, 13500, 12680, 13260, 150, 145, 127, 141, 140, 129, 140, 100, 125,
     103),
    (13600, 12270, 11400, 11560, 13320, 102, 125, 136, 108, 121, 119, 124, 102, 131, 127),
    (12200, 12470, 12770, 12830, 106, 131, 106, 140, 144, 141, 139, 139, 138, 139),
    (11360, 12460, 13610, 129, 105, 144, 135, 115, 121, 146, 121, 139, 102),
    (12960, 13540, 136, 104, 101, 100, 141, 145, 110, 147, 100, 101),
    (13390, 106, 148, 148, 124, 147, 132, 150, 129, 145, 140),
    (112, 115, 102, 101, 104, 128, 107, 132, 122, 147),
    (12270, 13070, 11750, 12420, 13240, 12640, 13230, 12240, 12320),
    (12380, 11600, 12840, 11750, 12990, 11260, 13170, 12610),
    (13010, 12940, 11830, 11950, 11550, 11350, 12560),
    (12240, 11880, 13130, 12730, 13230, 12090),
    (11870, 11650, 11970, 12680, 12570),
    (12830, 13190, 11980, 12820),
    (12990, 12720, 12920),
    (12430, 12440),
    (12040,),
)
REGION_ENTRY = (
    142, 121, 126, 139, 124, 145, 114, 131, 145, 141, 116, 145, 124, 122, 146, 124, 113,
    127, 136, 141, 100, 143, 116, 110,
)
REGION_EXIT = (
    112, 140, 104, 125, 105, 135, 141, 148, 129, 130, 129, 109, 131, 124, 138, 146, 145,
    127, 135, 141, 145, 147, 123, 150,
)
# fmt: on

CLUSTERS = {
    "single-24": (SINGLE_24, {"llama-70b": RATES_24_70B, "llama-30b": RATES_24_30B}),
    "regions-24": (REGIONS_24, {"llama-70b": RATES_24_70B, "llama-30b": RATES_24_30B}),
    "single-42": (SINGLE_42, {"llama-70b": RATES_42_70B}),
}
"""Kinds of the machines of each cluster, and their rates by model."""
PUBLISHED = MappingProxyType(
    {
        "published_helix": {
            ("single-24", "llama-70b"): 1289.5557702751735,
            ("regions-24", "llama-70b"): 1212.1768454598214,
            ("single-42", "llama-70b"): 4137.547585397642,
        },
        "published_swarm": {
            ("single-24", "llama-70b"): 757.8531857227841,
            ("regions-24", "llama-70b"): 616.455078125,
            ("single-42", "llama-70b"): 4892.242429600681,
        },
        "published_petals": {
            ("single-24", "llama-70b"): 952.1073984850639,
            ("regions-24", "llama-70b"): 952.1073984850639,
            ("single-42", "llama-70b"): 3292.2437689771396,
        },
    }
)
"""Tokens per second through published layouts. The artefact states those of Helix's solver.

Those of the rules of Swarm and Petals are largest flows through the layouts of the artefact.
"""


def helix_flow(cluster: str, model: str = "llama-70b") -> LayerFlowProblem:
    """Return the problem of a cluster and a model of Helix.

    Parameters
    ----------
    cluster : str
        ``single-24``, ``single-42`` or ``regions-24``.
    model : str
        ``llama-70b``, or ``llama-30b`` on the clusters of 24 machines.

    Raises
    ------
    ValueError
        If the name is unknown; the message suggests the closest one.

    Examples
    --------
    >>> helix_flow("regions-24")
    <LayerFlowProblem llama-70b on regions-24: 80 layers, 24 machines of 3 kinds>
    """
    kinds, tables = CLUSTERS[valid.known("cluster", cluster, CLUSTERS)]
    rates = tables[valid.known(f"model of {cluster}", model, tables)]
    names = [f"{number}-{kind}" for number, kind in enumerate(kinds.split())]
    links: dict[tuple[Place, Place], float] = {}
    for a, first in enumerate(names):
        links[None, first] = links[first, None] = LAN_BYTES_PER_S
        for second in names[a + 1 :]:
            links[first, second] = links[second, first] = LAN_BYTES_PER_S
    if cluster == "regions-24":
        for a, first in enumerate(names):
            links[None, first] = REGION_ENTRY[a] * 1e5
            links[first, None] = REGION_EXIT[a] * 1e5
            for b, second in enumerate(names[a + 1 :]):
                links[first, second] = links[second, first] = REGION_LINKS[a][b] * 1e5
    return LayerFlowProblem(
        name=f"{model} on {cluster}",
        n_layers=N_LAYERS[model],
        kinds=dict(zip(names, kinds.split(), strict=True)),
        tokens_per_s=rates,
        links=links,
        activation_bytes=ACTIVATION_BYTES[model],
        token_bytes=TOKEN_BYTES,
    )
