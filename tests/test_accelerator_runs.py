"""A run as accelerators have it, on eight simulated devices: their attention kernel, bfloat16, shared weights, rows."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT
from environment import simulated

# cuDNN is not here: what is asked of it is computed by the same public function.
AS_ON = """
import sys
sys.path.insert(0, "tests")
import jax
from selfreward_jax.cli.program import main
from selfreward_jax.runs import models
from test_parallel import cudnn_in_jax

kernel = sys.argv.pop(1)
jax.nn.dot_product_attention = cudnn_in_jax
models.resolve_impl = lambda *_: kernel
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "replicas"), [("splash", 1), ("cudnn", 2)])
def test_a_run_with_the_kernel_of_accelerators_ends_with_its_models(kernel, replicas, tmp_path):
    options = {
        "model.dtype": "bfloat16",
        "model.scan_layers": True,
        "model.remat": "full",
        "parallel.fsdp": 2,
        "parallel.tensor": 2,
        "parallel.replicas": replicas,
        "dpo.replay_batch_size": 4,
    }
    fields = [f"--config.{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-c", AS_ON, kernel, "run", "iter2:micro", f"--workdir={tmp_path / 'run'}", *fields]
    done = subprocess.run(command, cwd=ROOT, env=simulated(8), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["models"].keys() == {"m1", "m2"}
    for name, of_model in summary["models"].items():  # a model whose attention was wrong would write no judgments
        assert of_model["judge"]["parse_rate"] > 0.8, name
        assert of_model["judge"]["pairwise_accuracy"] > of_model["judge"]["length_accuracy"] + 0.1, name
