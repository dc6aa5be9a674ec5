"""`tiny_setup`: the inputs with which `warm_up` compiles the kernels."""

import numpy as np

from hypsolve.kernels.dispatch import LEAST_WORK_LEFT
from hypsolve.kernels.token_level.layout import CHURNED, COST, GPU, PART, Setup, records


def tiny_setup():
    """Return the set-up of one request, one node and one block, without pipelines."""
    zero = np.zeros(1, np.int64)
    part, gpu = records(1, PART), records(1, GPU)
    part["count"] = gpu["flops_per_s"] = gpu["bytes_per_s"] = gpu["kv_copies"] = 1
    return Setup(
        policy=LEAST_WORK_LEFT, max_num_seqs=1, chunk_tokens=1, contention=False,
        bandwidth_bound=True, record_visits=False, n_stages=1,
        max_num_batched_tokens=1, micro_batch_tokens=1, iteration_s=0.0, paged=False,
        kv_block_tokens=1, slot_tokens=1, n_users=0, think_time_s=0.0, n_slots=1,
        return_s=np.zeros(1), delivery_s=np.zeros(1),
        order=zero,
        part=part, part_start=np.array([0, 1]), windows=np.ones(1),
        gpu=gpu, cost=records((1, 1), COST), hop_first=zero, hop_end=zero.copy(),
        eligible=zero.copy(), eligible_start=np.array([0, 1]),
        speed_s=np.zeros(1), speed=np.ones(1), rate_s=np.zeros(0), rate=np.zeros(0),
        churn=records(0, CHURNED),
        expected_s=np.ones((1, 1, 1)), prefill_s=np.ones((1, 1, 1)),
        uniforms=np.zeros((1, 0, 2)), assigned=np.zeros((0, 1), np.int64),
        member=np.zeros((0, 1), np.int64), own_s=np.ones((1, 0)),
    )  # fmt: skip
