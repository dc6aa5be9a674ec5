"""What of a plan for requests per second can be verified."""

import json
import math

import hypsolve as hs
from hypsolve.verify.__main__ import main
from instances import network


def test_the_fluid_result_of_a_plan_is_verified(tmp_path, capsys):
    """`plan.result` has no certificate, and nothing else of a plan could be checked."""
    plan = hs.plan(
        "llama-3-8b", network("campus"), prompt_tokens=64, output_tokens=16,
        with_upgrades=False,
    )  # fmt: skip
    found = plan.fluid_result
    assert math.isclose(
        found.fluid_requests_per_s, plan.throughput.fluid_requests_per_s, rel_tol=1e-9
    )
    assert found.certificate is not None
    hs.save(found.instance, tmp_path / "instance.json")
    found.save(tmp_path / "result.json")
    assert main([str(tmp_path / "instance.json"), str(tmp_path / "result.json")]) == 0
    assert "verified" in capsys.readouterr().out
    assert "fluid_result" not in json.dumps(plan.to_dict())
    alone = hs.plan("llama-3-8b", network("campus"), objective="path", with_upgrades=False)
    assert alone.fluid_result is None
