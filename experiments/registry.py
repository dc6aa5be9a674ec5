"""All experiments by name: the families of runs, and the measurements of this machine."""

from experiments import anytime, claims, layouts, placing, runner, serving, solving
from experiments.definitions import MEASUREMENTS, Shown

FAMILIES: dict[str, runner.Family] = {
    "solving": solving,
    "anytime": anytime,
    "claims": claims,
    "serving": serving,
    "placing": placing,
    "layouts": layouts,
}


def family_of(name: str) -> runner.Family | None:
    """Return the family that plans an experiment; None for a measurement."""
    families = (family for family in FAMILIES.values() if name in family.EXPERIMENTS)
    return next(families, None)


def questions() -> dict[str, str]:
    """Return the question of every experiment, by its name."""
    groups = (*(family.EXPERIMENTS for family in FAMILIES.values()), MEASUREMENTS)
    return {name: each.question for group in groups for name, each in group.items()}


def shown(name: str) -> Shown:
    """Return the tables and figures of an experiment, or of a further file of a measurement.

    Raises
    ------
    KeyError
        If there is no experiment of this name.
    """
    family = family_of(name)
    if family is not None:
        return family.EXPERIMENTS[name].shown
    for measurement, each in MEASUREMENTS.items():
        if name == measurement:
            return each.shown
        if name in each.further:
            return each.further[name]
    raise KeyError(f"unknown experiment {name!r}; choose from {', '.join(questions())}")
