"""`served_weights`: the format of weights that a benchmark file names."""

from __future__ import annotations

import re

from hypsolve.catalog.weights import weights_choices

OF_MODEL_TYPE = {
    "F16": "fp16", "BF16": "bf16", "Q8_0": "q8_0", "Q4_0": "q4_0",
    "Q5_K - Medium": "q5_k_m", "Q4_K - Medium": "q4_k_m",
}  # fmt: skip
"""Formats by the name that ends ``model_type`` in files of ``llama-bench``."""
IN_NAMES = {"f16": "fp16", "gptq": "gptq-int4", "4bit": "", "8bit": ""}
"""Parts of names that mean a format of another name, or do not tell which one."""
GGML = re.compile(r"(?:i?q\d\w*|bf16|f16|f32|tq\d\w*|mxfp4)")  # names of llama.cpp's formats


def served_weights(model_type: str, name: str) -> str | None:
    """Return the format of weights by ``model_type`` of llama-bench, else by a name.

    Parameters
    ----------
    model_type : str
        Such as ``llama 8B Q4_K - Medium``; may be empty.
    name : str
        Of a file or a repository.

    Returns
    -------
    str or None
        A name in `hypsolve.weight_formats`; another text is a format that is not there. None if
        neither names one.

    Examples
    --------
    >>> served_weights("llama 8B Q4_K - Medium", "")
    'q4_k_m'
    >>> served_weights("", "Meta-Llama-3-8B-Instruct-AWQ"), served_weights("", "a-IQ2_XS.gguf")
    ('awq', 'iq2_xs')
    >>> served_weights("", "meta-llama/Llama-3.1-8B") is None
    True
    """
    for ending, weights in OF_MODEL_TYPE.items():
        if model_type.endswith(f" {ending}"):
            return weights
    found = _GGML_TYPE.search(model_type)
    if found is not None:
        return found[1]
    for part in reversed(_parts(name)):
        if part in IN_NAMES:
            return IN_NAMES[part] or part
        if part in weights_choices() or GGML.fullmatch(part):
            return part
    return None


_GGML_TYPE = re.compile(r" (I?Q\d\w*(?: - .*)?|[TB]?[FQ]\d+\w*|all F32|MXFP4.*)$")


def without_weights(name: str) -> str:
    """Return the name of a model, in small letters, without folder, ending and format.

    >>> without_weights("/m/Meta-Llama-3-8B-Instruct-Q4_K_M.gguf")
    'meta-llama-3-8b-instruct'
    """
    short = name.rpartition("/")[2].lower().removesuffix(".gguf")
    for part in reversed(_parts(name)):
        if part in IN_NAMES or part in weights_choices() or GGML.fullmatch(part):
            short = short.replace(f"-{part}", "").replace(f".{part}", "")
    return short


def _parts(name: str) -> list[str]:
    """Return the parts of a name between hyphens and dots."""
    return re.split(r"[-.]", name.rpartition("/")[2].lower())
