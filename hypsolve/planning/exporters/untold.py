"""Name the simulated limits that a server cannot be told, so that its user knows."""

from __future__ import annotations

from hypsolve import catalog
from hypsolve.planning.exporters.layout import BenchmarkLoad, Layout
from hypsolve.planning.exporters.llama_cpp import MAX_SLOTS, slot_tokens, slots
from hypsolve.planning.exporters.sglang import HEADROOM_TOKENS
from hypsolve.planning.exporters.vllm import BLOCK_TOKENS
from hypsolve.problem.model import Model
from hypsolve.problem.runtime import KvAdmission, Runtime
from hypsolve.problem.units import count


def untold(simulated: Runtime, server: str) -> list[str]:
    """Return a line for each limit of a runtime that no flag of a server carries.

    Parameters
    ----------
    simulated : Runtime
    server : str
        ``vllm``, ``sglang`` or ``llama.cpp``.
    """
    own = catalog.runtime(server)
    paged = simulated.kv_admission is KvAdmission.PAGED
    lines = []
    if simulated.server == server and simulated.batching is not own.batching:
        lines.append(
            f"batching {simulated.batching} was simulated: {server} has {own.batching}"
        )
    if simulated.iteration_s:
        lines.append(
            f"iteration_s = {simulated.iteration_s:g} was simulated: {server} has no such flag"
        )
    if server != "sglang" and simulated.chunk_tokens is not None:
        lines.append(
            f"chunk_tokens = {simulated.chunk_tokens} is no flag of {server}: its limit counts"
            " decode tokens, too, so prompts may take more of a batch than was simulated"
        )
    limits = (simulated.chunk_tokens, simulated.max_num_batched_tokens)
    if server != "sglang" and limits == (None, None):
        lines.append(
            "max_num_batched_tokens had no limit in the simulation: the default of"
            f" {server} holds"
        )
    if server == "sglang" and simulated.max_num_batched_tokens is not None:
        lines.append(
            f"max_num_batched_tokens = {simulated.max_num_batched_tokens} limits prompt tokens"
            " alone in sglang: decode tokens come on top"
        )
    if server == "vllm" and paged and simulated.kv_block_tokens not in BLOCK_TOKENS:
        lines.append(
            f"kv_block_tokens = {simulated.kv_block_tokens} is no --block-size of vllm, which"
            f" takes {', '.join(map(str, BLOCK_TOKENS))}: its default holds"
        )
    if server == "llama.cpp" and paged:
        lines.append("a paged KV cache was simulated: llama.cpp gives each slot its own cache")
    if server == "llama.cpp" and simulated.memory_fraction < 1 and simulated.server == server:
        lines.append(
            f"memory_fraction = {simulated.memory_fraction:g} is no flag of llama.cpp, which"
            " takes what weights and slots need"
        )
    if server == "sglang" and simulated.prompt_limit is None:
        lines.append(
            "sglang 0.5.23 mixes prompts with decode tokens only where it computes prompts in"
            " chunks: mixed batches were simulated without"
        )
    elif server == "sglang":
        lines.append(
            "mixed batches were simulated: --enable-mixed-chunk asks for them, which sglang"
            " 0.5.23 leaves off by default"
        )
    return lines


def too_many_slots(layout: Layout, load: BenchmarkLoad) -> list[str]:
    """Return a line if llama.cpp has fewer slots than requests that ran at once."""
    lines = []
    for replica in layout.replicas:
        most, has = layout.sequences(replica, load), slots(layout, replica, load)
        if has == MAX_SLOTS < most:
            lines.append(
                f"{most} requests at once were simulated: llama-server has {MAX_SLOTS} slots"
                " at most"
            )
        elif has < most:
            lines.append(
                f"up to {most} requests at once were simulated: memory has room for"
                f" {count(has, 'slot')} of {slot_tokens(load)} tokens"
            )
    return list(dict.fromkeys(lines))


def too_long(model: Model, load: BenchmarkLoad, server: str) -> list[str]:
    """Return a line if a sequence is longer than the model was made for.

    vLLM (``get_and_verify_max_len``) and SGLang (``ModelConfig``) then refuse to start. The
    context of llama.cpp is the one that it is told.
    """
    limit, more = model.context_tokens, HEADROOM_TOKENS if server == "sglang" else 0
    if not limit or load.tokens + more <= limit:
        return []
    what = f"{load.tokens} tokens"
    if load.tokens <= limit:
        what += f" and the {more} that {server} keeps free"
    line = f"{what} are longer than the {limit} that the model was made for"
    flag = {
        "vllm": f"--max-model-len {load.tokens}",
        "sglang": f"--context-length {load.tokens + HEADROOM_TOKENS}",
    }.get(server)
    if flag is None:
        return [f"{line}: answers become poor"]
    return [f"{line}: {server} refuses to start with {flag}"]


def no_slack(load: BenchmarkLoad, context: int, server: str) -> str:
    """Return what the length of the context, in tokens, means for other requests.

    vLLM refuses a request whose prompt and `max_tokens` are longer than the context, with HTTP
    status 400. SGLang and llama.cpp end its answer at the end of the context.
    """
    more = context - load.tokens
    has = f"{more} tokens more than" if more else f"exactly {load.tokens} tokens, as"
    then = "shortens answers, so raise the limit if prompts are longer"
    if server == "vllm":
        then = (
            "makes longer requests, which vllm refuses (HTTP 400): lower max_tokens, or raise"
            " --max-model-len"
        )
    return f"the context has {has} simulated: a chat template or a BOS token {then}"
