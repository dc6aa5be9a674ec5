"""Types of the tables in a machines file, with the rules that `read_machines` checks.

`hypsolve.planning.json_schema` makes a JSON Schema from them.
"""

from typing import Annotated, NotRequired, TypedDict

from hypsolve import catalog
from hypsolve.formats.network_toml_types import (
    GpuTable,
    HardwareTable,
    Key,
    LinkTable,
    RuntimeName,
    RuntimeTable,
    Source,
)

MAX_MACHINES = 10_000  # of a file

_Price = Annotated[float, Key("Price of each machine per hour, in `currency`.")]
_SiteName = Annotated[str, Key("Name of a site.")]
_Share = Annotated[float, Key("Share of the requests.", maximum=1)]


class PlacedTable(HardwareTable):
    """A machine: its GPUs, and where it is."""

    site: NotRequired[
        Annotated[str, Key("Site of the machine; default: the only site of the file.")]
    ]
    uplink: NotRequired[
        Annotated[
            LinkTable,
            Key("Link of the machine to its site, if it is slower than the site's own."),
        ]
    ]


class MachineTable(PlacedTable):
    """Machines of one kind that are there."""

    name: NotRequired[
        Annotated[
            str,
            Key("Name of the machine; of several, NAME-0, NAME-1, ...; default: the GPU's."),
        ]
    ]
    names: NotRequired[
        Annotated[
            list[Annotated[str, Key("Name of a machine.")]],
            Key("Names of the machines, in place of name.", minimum=1, distinct=True),
        ]
    ]
    count: NotRequired[
        Annotated[
            int,
            Key(
                "Number of machines; default: 1, or the number of names.",
                minimum=1,
                maximum=MAX_MACHINES,
            ),
        ]
    ]
    host: NotRequired[
        Annotated[str, Key("Address of a single machine, as others reach it; default: name.")]
    ]
    price_per_hour: NotRequired[_Price]


class OfferTable(PlacedTable):
    """Equal machines that could be rented, up to a number."""

    name: Annotated[str, Key("Name of the offer; its machines are NAME-0, NAME-1, ...")]
    max_count: Annotated[
        int,
        Key("Largest number of machines that are offered.", minimum=1, maximum=MAX_MACHINES),
    ]
    price_per_hour: _Price


class SiteTable(TypedDict):
    """A place whose machines reach each other over one local network."""

    name: _SiteName
    link: NotRequired[
        Annotated[
            LinkTable, Key("Link between two machines of the site; default: the file's `link`.")
        ]
    ]
    source: NotRequired[Source]


_Ends = TypedDict(
    "_Ends",
    {
        "from": Annotated[str, Key("Name of the site that sends.")],
        "to": Annotated[str, Key("Name of the site that receives.")],
    },
)


class SiteLinkTable(_Ends, LinkTable):
    """A link from one site to another, and back unless that way has an entry of its own."""


class PinTable(TypedDict):
    """Blocks that must stay at some sites."""

    blocks: Annotated[
        str,
        Key(
            "`embedding`, `head`, or numbers of blocks `START:STOP`, of which the embedding is"
            " block 0 and STOP is left out: `0:4` is the embedding and three layers, `30:` all"
            " from block 30 on.",
            known=lambda: ("embedding", "head"),
        ),
    ]
    sites: Annotated[
        list[_SiteName], Key("Sites that may host them.", minimum=1, distinct=True)
    ]
    source: NotRequired[Source]


class MachinesTable(TypedDict):
    """Machines without an order, for `hypsolve place`: those that are there, and offers."""

    description: NotRequired[Annotated[str, Key("Description of the machines, for people.")]]
    currency: NotRequired[Annotated[str, Key("Currency of all prices, such as USD.")]]
    runtime: NotRequired[
        Annotated[
            RuntimeName | RuntimeTable,
            Key("Runtime that placements and simulations follow: its name, or a table."),
        ]
    ]
    machines: NotRequired[
        Annotated[list[MachineTable], Key("Machines that are there, by kind.", minimum=1)]
    ]
    offers: NotRequired[
        Annotated[list[OfferTable], Key("Machines that could be rented.", minimum=1)]
    ]
    sites: NotRequired[
        Annotated[
            list[SiteTable],
            Key("Sites of the machines; default: all are at one site.", minimum=1),
        ]
    ]
    link: NotRequired[
        Annotated[
            LinkTable,
            Key("Link between two machines of a site, for sites without a link of their own."),
        ]
    ]
    links: NotRequired[Annotated[list[SiteLinkTable], Key("Links between sites.")]]
    default_link: NotRequired[
        Annotated[
            LinkTable,
            Key(
                "Link between two sites that `links` does not join; without it, they are not"
                " used together."
            ),
        ]
    ]
    entry: NotRequired[
        Annotated[
            dict[_SiteName, _Share],
            Key(
                "Shares of the requests by the site where they enter, which add up to 1;"
                " default: all enter at the first site."
            ),
        ]
    ]
    pins: NotRequired[Annotated[list[PinTable], Key("Blocks that must stay at some sites.")]]
    apart: NotRequired[
        Annotated[
            list[
                Annotated[
                    list[Annotated[str, Key("Name of a machine, of an entry, or an offer.")]],
                    Key("Names of which a pipeline uses one.", minimum=2, distinct=True),
                ]
            ],
            Key(
                "Lists of machines that must not serve in one pipeline, such as GPUs of two"
                " makers: a pipeline uses machines of at most one name of each list."
            ),
        ]
    ]
    gpus: NotRequired[
        Annotated[
            dict[
                Annotated[
                    str, Key("Name that the catalogue does not use.", taken=catalog.gpus)
                ],
                GpuTable,
            ],
            Key("Your own GPUs, by name."),
        ]
    ]
