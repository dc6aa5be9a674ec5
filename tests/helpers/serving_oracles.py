"""Random serving instances, and the best split by the re-scorer over all splits."""

import itertools

import numpy as np

from hypsolve.problem.serving import ServingInstance
from hypsolve.problem.serving_evaluation import check_serving, evaluate_serving
from hypsolve.problem.solution import Partition


def random_serving(rng, mode):
    """Return a small instance with random tables, limits, pins, memory and links."""
    n_kinds, n_classes = int(rng.integers(1, 4)), int(rng.integers(1, 3))
    n_blocks, n_tiers = int(rng.integers(2, 7)), int(rng.integers(1, 4))
    size, may_be_empty = (n_classes, n_kinds), bool(rng.random() < 0.5)
    n_tiers = n_tiers if may_be_empty else min(n_tiers, n_blocks)
    prompt, output = int(rng.integers(1, 200)), int(rng.integers(1, 40))
    held = prompt + output

    def table(low, high):
        return rng.uniform(low, high, size) * (rng.random(size) < 0.8)

    last = np.zeros(n_kinds, int)
    last[-1] = n_kinds > 1 and rng.random() < 0.5
    tables = {
        "fixed_s": table(1e-5, 1e-3) + 1e-6,
        "read_s": table(1e-4, 1e-2),
        "expert_s": table(1e-4, 1e-2) * (rng.random() < 0.3),
        "compute_token_s": table(1e-5, 1e-3),
        "memory_token_s": table(1e-5, 1e-3),
        "compute_chunk_s": table(1e-4, 2e-2),
        "memory_chunk_s": table(1e-4, 1e-2),
        "weight_bytes": rng.uniform(0, held, size),
        "kv_bytes_per_token": (rng.random(size) < 0.8) * rng.uniform(0.5, 1.5, size),
        "idle_share": rng.uniform(0, 0.95, n_kinds),
        "last_token_only": last,
        "block_kind": rng.integers(0, n_kinds, n_blocks),
        "tiers": [
            [
                (
                    int(rng.integers(0, n_classes)),
                    rng.uniform(1, rng.choice([4, 20, 100])) * held * n_blocks / 2,
                )
                for _ in range(int(rng.integers(1, 4)))
            ]
            for _ in range(n_tiers)
        ],
        "prompt_tokens": prompt,
        "output_tokens": output,
        "token_s": rng.uniform(0, 10 ** rng.uniform(-6, -3.5), (n_tiers - 1, 2)),
        "cut_kind": rng.integers(0, 2, n_blocks + 1),
        "round_trip_s": rng.uniform(0, 10 ** rng.uniform(-4, -1), n_tiers - 1),
        "entry_s": rng.uniform(0, 0.05, n_tiers - 1),
        "price_per_hour": rng.uniform(1, 5, 0),
        "allow_empty": may_be_empty,
        "max_num_seqs": int(rng.integers(1, 65)),
        "batching": mode,
        "kv_admission": str(rng.choice(["reserve", "paged"])),
        "iteration_s": float(rng.choice([0, 1e-3])),
    }
    n_nodes = sum(map(len, tables["tiers"]))
    tables["price_per_hour"] = rng.uniform(1, 5, n_nodes)
    if rng.random() < 0.5:
        tables["prompt_limit"] = int(rng.integers(1, prompt + 1))
    if rng.random() < 0.4:
        limit = int(rng.integers(max(1, prompt // 3), 2 * prompt + 2))
        tables["max_num_batched_tokens"] = limit
        tables["prompt_limit"] = min(tables.get("prompt_limit", limit), limit)
    if rng.random() < 0.25:
        tables["pinned"] = {int(rng.integers(0, n_blocks)): int(rng.integers(0, n_tiers))}
    if rng.random() < 0.2:
        tables["max_blocks"] = rng.integers(1, n_blocks + 1, n_tiers).tolist()
    if rng.random() < 0.2:
        lines = [1e-4, 1e-5, 30, 2e-4, 6e-6]
        tables["collective_s"] = np.full((*size, 5), lines)
    later = np.random.default_rng([prompt, output, 1])  # what else is drawn stays
    if later.random() < 0.4:
        tables |= {
            "mixed_s": later.uniform(0, 5e-3, size),
            "linear_token_s": later.uniform(0, 1e-3, size),
            "linear_chunk_s": later.uniform(0, 1e-2, size),
        }
    if later.random() < 0.3:
        tables["request_s"] = float(later.uniform(0, 0.1))
    return ServingInstance.from_tables(**tables)


def with_targets(instance, rng):
    """Return the instance with random targets or users that some split may just meet."""
    splits = list(feasible_splits(instance))
    if not splits:
        return instance
    served = evaluate_serving(instance, splits[int(rng.integers(len(splits)))])
    if served.latencies is None:
        return instance
    times = served.latencies
    targets = {
        "ttft_slo_s": times.ttft_s * rng.uniform(0.5, 1.2) + 1e-9,
        "tpot_slo_s": times.tpot_s * rng.uniform(0.5, 1.2) + 1e-9,
        "latency_slo_s": times.latency_s * rng.uniform(0.5, 1.2) + 1e-9,
    }
    chosen = {name: value for name, value in targets.items() if rng.random() < 0.5}
    if rng.random() < 0.3 or not chosen:
        users = {"users": int(rng.integers(1, 40)), "think_time_s": rng.choice([0, 1.0])}
        instance = instance.replace(**users)
    return instance.replace(objective="goodput", **chosen) if chosen else instance


def mixed_lengths(instance, rng):
    """Return the instance with the moments of requests of different lengths."""
    from dataclasses import replace

    from hypsolve.problem.serving import lengths_of

    prompt = rng.integers(1, 200, 5)
    lengths = lengths_of(prompt, rng.integers(1, 40, 5), instance.rules)
    return replace(instance, lengths=lengths)


def feasible_splits(instance):
    """Yield all splits that break no rule."""
    inner = range(instance.n_blocks + 1)
    for cuts in itertools.combinations_with_replacement(inner, instance.n_tiers - 1):
        split = Partition((0, *cuts, instance.n_blocks))
        if not check_serving(instance, split):
            yield split
