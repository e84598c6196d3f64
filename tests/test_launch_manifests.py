"""Manifests for GKE and SkyPilot: checked against schemas of their fields, and the commands that a machine runs."""

import copy
import shutil
import subprocess

import launch_stand_ins
import pytest
import yaml
from launch_stand_ins import GKE, LAUNCH, MAIN, ODD

world = launch_stand_ins.world  # a fixture

# ---- GKE

WORD = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}


def closed(required, **properties):
    """An object with these fields and no others."""
    return {"type": "object", "additionalProperties": False, "required": required.split(), "properties": properties}


def many(items, **more):
    return {"type": "array", "items": items, "minItems": 1} | more


# The fields that the manifest uses, with the types that JobSet's and Kubernetes' own schemas give them.
RULE = closed("name action", name=WORD, action={"enum": ["FailJobSet", "RestartJobSet"]}, onJobFailureReasons=many(
    {"enum": ["BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "PodFailurePolicy"]}))  # fmt: skip
EXIT_CODES = closed("operator values", containerName=WORD, operator={"enum": ["In", "NotIn"]}, values=many(
    {"type": "integer", "minimum": 1, "maximum": 255}, uniqueItems=True))  # fmt: skip
CONTAINER = closed(
    "name image",
    name=WORD,
    image=WORD,
    securityContext=closed("", privileged={"type": "boolean"}),
    ports=many(closed("containerPort", containerPort={"type": "integer", "minimum": 1, "maximum": 65535})),
    command=many(WORD),
    args=many(WORD),
    envFrom=many(closed("secretRef", secretRef=closed("name", name=WORD))),
    resources=closed("limits", limits={"type": "object", "additionalProperties": COUNT}),
)
POD = closed(
    "containers restartPolicy",
    restartPolicy={"const": "Never"},  # where there is a podFailurePolicy
    serviceAccountName=WORD,
    nodeSelector={"type": "object", "additionalProperties": WORD},
    containers=many(CONTAINER),
)
JOB = closed(
    "template",
    parallelism=COUNT,
    completions=COUNT,
    completionMode={"enum": ["Indexed", "NonIndexed"]},
    backoffLimit=COUNT,
    podFailurePolicy=closed("rules", rules=many(
        closed("action", action={"enum": ["FailJob", "Ignore", "Count"]}, onExitCodes=EXIT_CODES))),
    template=closed("spec", spec=POD),
)  # fmt: skip
JOBSET = closed(
    "apiVersion kind metadata spec",
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=closed("name", name=WORD, namespace=WORD, annotations={"type": "object", "additionalProperties": WORD}),
    spec=closed(
        "replicatedJobs",
        failurePolicy=closed("", maxRestarts=COUNT, rules=many(RULE)),
        replicatedJobs=many(closed("name template", name=WORD, replicas=COUNT, template=closed("spec", spec=JOB))),
    ),
)


def faults(schema, value):
    jsonschema = pytest.importorskip("jsonschema")
    return [e.message for e in jsonschema.Draft202012Validator(schema).iter_errors(value)]


def manifest(world, *options):
    done = world.run("gke.sh", *GKE, "--manifest", *options)
    assert done.returncode == 0, done.err
    assert "${" not in done.out.split("args:")[0]
    return yaml.safe_load(done.out)


def test_the_manifest_is_a_jobset(world):
    found = manifest(
        world, "--spot", "--slices=3", "--topology=4x8", "--namespace=ns", "--service_account=sa", "--", *MAIN
    )
    assert faults(JOBSET, found) == []
    assert found["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    (slices,) = found["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    assert (slices["replicas"], job["parallelism"], job["completions"]) == (3, 8, 8)
    pod = job["template"]["spec"]
    assert pod["serviceAccountName"] == "sa"
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x8",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["command"] == ["python", "-m", "selfreward_jax.main", "--distributed"]
    assert container["args"] == ["--config.parallel.replicas=3", *MAIN]


def test_a_secret_becomes_variables(world):
    found = manifest(world, "--secret=keys", "--", *MAIN)
    assert faults(JOBSET, found) == []
    (container,) = found["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "keys"}}]


def test_the_manifest_fails_on_bad_input_and_restarts_on_anything_else(world):
    found = manifest(world, "--max_restarts=7", "--", *MAIN)
    policy = found["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7
    assert [(r["action"], r["onJobFailureReasons"]) for r in policy["rules"]] == [("FailJobSet", ["PodFailurePolicy"])]
    job = found["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["backoffLimit"] == 0  # a pod that failed fails its Job, and that restarts the JobSet
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {"containerName": "main", "operator": "In", "values": [2]}
    assert job["template"]["spec"]["containers"][0]["name"] == "main"


def test_a_pod_gets_its_arguments_unchanged_and_one_slice_no_replicas(world):
    found = manifest(world, "--", *MAIN, *ODD)
    pod = found["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    # Kubernetes reads $$ as $, and a single $ before a bracket as a variable.
    args = pod["containers"][0]["args"]
    assert not any("$(" in a.replace("$$", "") for a in args)
    assert [a.replace("$$", "$") for a in args] == [*MAIN, *ODD]
    assert "cloud.google.com/gke-spot" not in pod["nodeSelector"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.replicatedJobs.0.replicas", "${SLICES}"),
        ("spec.replicatedJobs.0.template.spec.template.spec.restartPolicy", "OnFailure"),
        ("spec.replicatedJobs.0.template.spec.podFailurePolicy.rules.0.onExitCodes.values", [0]),
        ("spec.failurePolicy.rules.0.onJobFailureReasons", ["ExitCode"]),
        ("spec.failurePolicy.maxRestart", 3),
        ("apiVersion", "jobset.x-k8s.io/v1"),
    ],
)
def test_the_schema_rejects_an_invalid_jobset(path, value, world):
    found = copy.deepcopy(manifest(world, "--", *MAIN))
    *above, last = path.split(".")
    node = found
    for step in above:
        node = node[int(step) if step.isdigit() else step]
    node[last] = value
    assert faults(JOBSET, found)


def test_gke_returns_the_exit_code_of_kubectl(world):
    world.stub("kubectl", "exit 7")
    assert world.run("gke.sh", *GKE, "--", *MAIN).returncode == 7
    assert world.calls("kubectl") == [["kubectl", "apply", "-f", "-"]]


# ---- SkyPilot

CODE = {"type": "integer", "minimum": 0, "maximum": 255}
SKY = closed(
    "name resources envs workdir setup run",
    name=WORD,
    workdir=WORD,
    num_nodes={"type": "integer", "minimum": 1},
    resources=closed(
        "accelerators use_spot job_recovery",
        infra=WORD,
        accelerators=WORD,
        accelerator_args=closed("", runtime_version=WORD, tpu_vm={"type": "boolean"}),
        use_spot={"type": "boolean"},
        job_recovery=closed(
            "",
            strategy={"enum": ["FAILOVER", "EAGER_NEXT_REGION"]},
            max_restarts_on_errors=COUNT,
            recover_on_exit_codes=many(CODE, uniqueItems=True),
        ),
    ),
    envs={"type": "object", "additionalProperties": {"type": ["string", "null"]}},
    setup=WORD,
    run=WORD,
)


def sky(name):
    return yaml.safe_load((LAUNCH / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", ["sky_tpu", "sky_gpu"])
def test_the_sky_files_are_managed_jobs_that_recover_on_75_alone(name):
    task = sky(name)
    assert faults(SKY, task) == []
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    assert task["resources"]["job_recovery"]["max_restarts_on_errors"] == 0
    assert task["envs"]["WORKDIR"] is None  # SkyPilot refuses a job without it
    assert "sky jobs launch" in (LAUNCH / f"{name}.yaml").read_text()
    for field, value in (("job_recovery", "75"), ("recovery", {}), ("accelerators", {"H100": 8})):
        wrong = copy.deepcopy(task)
        wrong["resources"][field] = value
        assert faults(SKY, wrong)


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (2, 2), (1, 1), (75, 75), (137, 75), (143, 75)])
@pytest.mark.parametrize("name", ["sky_tpu", "sky_gpu"])
def test_a_sky_machine_runs_its_process_and_returns_75_after_a_signal(name, code, expected, world):
    python = world.path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    world.stub("python", f"exit {code}")
    shutil.move(world.bin / "python", python)
    env = {"CONFIG": "c.py:x", "WORKDIR": "gs://b/r", "OPTIONS": "--config.seed=1 --config.sft.batch_size=8"}
    env |= {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_NODES": "2"}
    done = subprocess.run(["bash", "-c", sky(name)["run"]], cwd=world.path, env=world.env | env)
    assert done.returncode == expected
    ((_, *words),) = world.calls()
    flags = {
        "sky_tpu": ["--distributed"],
        "sky_gpu": ["--coordinator_address=10.0.0.1:8476", "--num_processes=2", "--process_id=1"],
    }
    options = ["--config=c.py:x", "--workdir=gs://b/r", "--config.seed=1", "--config.sft.batch_size=8"]
    assert words == ["-m", "selfreward_jax.main", *flags[name], *options]
