"""Simulations of these tests are short; see `tests.helpers.short_simulations`."""

from tests.helpers.short_simulations import full_length, short_simulations  # noqa: F401
