"""The records of an instance validate themselves, and the instance checks their sizes."""

import copy
import pickle

import numpy as np
import pytest

from hypsolve.problem.instance import ARRAY_FIELDS, RECORDS, Instance

OTHERS = [
    *("tied_bytes", "objective", "stage_rule", "allow_empty", "overlap", "link_cost"),
    *("name", "extrapolated", "tier_names", "node_names", "class_names"),
]


@pytest.fixture
def instance():
    return Instance.from_tables(
        block_s=[[[1.0, 2, 3], [2, 4, 6]]],
        block_bytes=[1, 2, 1],
        tiers=[[(0, 9)], [(1, 9), (0, 8)]],
        transfer_s=[[[1, 2, 3, 0]]],
        objective="path",
        name="records",
    )


def arrays(instance):
    return {field: getattr(instance, field) for field in (*ARRAY_FIELDS, *OTHERS)}


def test_an_instance_is_made_from_its_attributes(instance):
    again = Instance.from_arrays(**arrays(instance))
    assert again == instance
    assert (again.name, again.tier_names) == (instance.name, instance.tier_names)


@pytest.mark.parametrize("copied", [copy.copy, lambda i: pickle.loads(pickle.dumps(i))])
def test_copies_are_equal(instance, copied):
    assert copied(instance) == instance
    assert copied(instance).node_names == instance.node_names


def test_replace_keeps_the_other_records(instance):
    other = instance.replace(objective="bottleneck", overlap=True)
    kept = [record for record in RECORDS if record not in ("rules", "names")]
    assert all(getattr(other, record) is getattr(instance, record) for record in kept)
    assert (other.names, other.rules.overlap) == (instance.names, True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind_s": np.ones((1, 1, 3))}, r"reference_s must have shape \(1, 3\)"),
        ({"block_kind": []}, r"block_bytes must have shape \(0\)"),
        ({"block_kind": [], "block_bytes": []}, "block_kind must hold at least one block"),
        ({"node_tier": [0, 1, 3]}, "node_tier must hold whole numbers below 3, got 3"),
        ({"node_tier": [0, 2, 2]}, "node_tier must start at 0 and rise by 0 or 1"),
        ({"node_tier": [0, 1, 2]}, r"transfer_s must have shape \(any, 2, any\), got \(1, 1"),
        ({"node_class": [0, 1, 2]}, "node_class must hold whole numbers below 2, got 2"),
        ({"node_class": [0, 1, 0.5]}, "node_class must hold whole numbers"),
        ({"cut_kind": [0, 1, 2]}, r"cut_kind must have shape \(4\), got \(3,\)"),
        ({"occupancy_kind_s": np.ones((1, 1, 1))}, "occupancy_s must have shape"),
        ({"cut_min": [0, 4, 3]}, "cut_min must hold whole numbers below 4, got 4"),
        ({"cut_max": [0, 3, 2]}, r"must start at 0 and end at 3, got \[0, 0, 3, 2\]"),
        ({"min_blocks_given": [5, 0]}, r"min_blocks\[0\] must be at most max_blocks\[0\] = 3"),
        ({"max_blocks": [3, 9]}, "max_blocks must hold whole numbers below 4, got 9"),
        (
            {"tied_bytes": 2},
            "tied_bytes must be at most the bytes of the first and of the last",
        ),
        ({"tier_names": ("a",)}, "tier_names must be 2 strings"),
    ],
    ids=str,
)
def test_wrong_parts_are_refused(instance, changes, message):
    with pytest.raises(ValueError, match=f"instance: .*{message}|instance: {message}"):
        Instance.from_arrays(**(arrays(instance) | changes))


def test_an_unknown_attribute_suggests_the_likeliest(instance):
    with pytest.raises(TypeError, match="unknown field 'most_blocks'; did you mean max_blocks"):
        Instance.from_arrays(**arrays(instance), most_blocks=[3, 3])
