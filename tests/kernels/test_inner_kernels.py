"""Kernels for calls from other kernels alone."""

import numba
import pytest

from hypsolve.kernels.throughput import STAGE, node, server, stage_mode
from hypsolve.kernels.throughput.tiny import tiny


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="the JIT is off")
@pytest.mark.parametrize(
    ("kernel", "content"), [(server.tau, (0, 1.0, 0.0)), (node.seconds, (0, 1.0))]
)
def test_an_inner_kernel_refuses_a_call_from_python(kernel, content):
    """It has no code that reads Python objects: such a call would crash the process."""
    for _ in range(2):  # before and after its overload is compiled or loaded
        with pytest.raises(TypeError, match=f"kernel {kernel.__name__} can be called from ker"):
            kernel(tiny(STAGE), 0, *content)
        stage_mode.warm_up()
