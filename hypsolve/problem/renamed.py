"""Names that hypsolve no longer uses, so that an error can suggest their successors."""

from collections.abc import Collection

RENAMED: dict[str, tuple[str, ...]] = {
    "least_blocks": ("min_blocks",),
    "most_blocks": ("max_blocks",),
    "least_given": ("min_blocks_given",),
    "least_mean_latency": ("min_mean_latency",),
    "most_choices": ("max_choices",),
    "most_context_tokens": ("max_context_tokens",),
    "most_sequences": ("max_sequences",),
    "max_batch": ("max_num_seqs",),
    "most_trials": ("max_trials",),
    "dtype": ("weights",),
    "time_limit": ("time_limit_s",),
    "tell": ("progress",),
    "found": ("plan",),
    "without": ("disable",),
    "prices": ("lagrangian_bound", "multipliers"),
    "price": ("multipliers",),
    "boxes": ("partition_boxes",),
    "search": ("beam_search",),
    "service": ("forecast",),
    "changes": ("upgrades",),
    "what_would_help": ("find_upgrades",),
    "with_changes": ("with_upgrades",),
    "binding": ("bottleneck_stage",),
    "blocks_in_words": ("describe_blocks",),
}
"""Successors of each old name of an option, key, value or attribute."""


def successor(name: str, choices: Collection[str]) -> str | None:
    """Return the successor of an old name that is among `choices`, or None.

    Parameters
    ----------
    name : str
        Any name that a user wrote.
    choices : collection of str
        Names that are valid where the user wrote `name`.

    Examples
    --------
    >>> successor("least_blocks", ["min_blocks", "max_blocks"])
    'min_blocks'
    >>> successor("dtype", ["min_blocks"]) is None
    True
    """
    return next((new for new in RENAMED.get(name, ()) if new in choices), None)
