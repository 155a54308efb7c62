import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import command, freeze, input, ops, scaling, train_step
from benchmarks.case import IMPLEMENTATIONS, missing
from covidjax.errors import UserError
from tests.commands import ROOT, Main

QUICK = ["--samples=2", "--min_sample_seconds=0.01", "--warm_up_steps=1", "--max_foreign_share=1000"]
NOT_NEEDED = "clu, orbax, grain, ml_collections, PIL, matplotlib, sklearn, scipy, h5py, tensorboard, torch, keras"


def train_step_from_a_shell(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(ROOT / "benchmarks/train_step.py"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_covidjax_beside_plain_flax_leaves_records_a_chart_and_a_profile(tmp_path: Path) -> None:
    """As a user starts it, in a folder that is not the repository's."""
    arguments = ["--model=cnn", "--image_size=16", "--batch_size=4", "--peers=flax", "--json=r.json", "--csv=r.csv"]
    arguments += ["--mode=inference", "--freeze=none,backbone"]  # in inference nothing is frozen: one piece of work
    done = train_step_from_a_shell(*arguments, "--plot=r.png", "--profile=traces", *QUICK, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "r.json").read_text())
    assert [(row["impl"], row["n_samples"], row["error"]) for row in rows] == [("covidjax", 2, ""), ("flax", 2, "")]
    assert rows[0]["total_params"] == rows[1]["total_params"] and rows[0]["flops_per_step"] > 1e6
    assert rows[0]["matmul_flops_per_second"] > 1e8 and 0 < rows[0]["share_of_matmul_ceiling"] < 1
    assert (tmp_path / "r.csv").read_text().startswith("# python benchmarks/train_step.py --model=cnn")
    assert (tmp_path / "r.png").exists()
    operations = json.loads(next((tmp_path / "traces").rglob("operations.json")).read_text())
    assert len(operations) > 10 and operations[0]["milliseconds"] >= operations[1]["milliseconds"]
    assert "ms/step   share  operation" in done.stdout


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (train_step.main, "--model=resnet19", "there is no benchmark of 'resnet19': allowed are cnn, "),
        (train_step.main, "--peers=mxnet", "there is no peer 'mxnet': allowed are flax, "),
        (train_step.main, "--peers=matmul_jax", "there is no peer 'matmul_jax'"),
        (train_step.main, "--precision=float8", "--precision is 'float8': allowed are float32, bfloat16"),
        (train_step.main, "--freeze=until:layer9", "with one of stem, layer1, layer2, layer3, layer4$"),
        (train_step.main, "--model=cnn --freeze=until:head", "one of block1, block2, block3, block4$"),
        (train_step.main, "--batch_size=0", "argument --batch_size: "),
        (train_step.main, "--samples=0", "--samples is 0"),
        (train_step.main, "--min_sample_seconds=0", "--min_sample_seconds is 0"),
        (train_step.main, "--warm_up_steps=0", "--warm_up_steps is 0"),
        (train_step.main, "--ops=fast", "--ops is 'fast': allowed are xla, auto, native"),
        (train_step.main, "--mode=predict", "'predict'"),
        (train_step.main, "--json=nowhere/r.json", "there is no folder .*nowhere for r.json"),
        (train_step.main, "--modle=cnn", "unrecognized arguments: --modle=cnn"),
        (train_step.main, "--model=vgg16 --image_size=100", "take a multiple of 32"),
        (scaling.main, "--batch_size=6 --devices=1,4", "--batch_size 6 does not divide over 4 devices"),
        (scaling.main, "--engine=ddp", "--engine is 'ddp': allowed are jit, fsdp, processes, pmap, pmap_local"),
        (ops.main, "--model=unet --image_size=30", "image size 30"),
        (freeze.main, "--model=cnm", "invalid choice: 'cnm'"),
        (freeze.main, "--epoch_images=5", "--epoch_images is 5"),
        (freeze.main, "--model=cnn --peers= --strategies=until:block9", "there is no stage 'block9'"),
        (freeze.main, "--model=cnn --peers= --strategies=cached:norm", "first stage trains"),
    ],
)
def test_mistakes_are_said_in_one_line_before_anything_runs(main: Main, arguments: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        main(arguments.split(" "))
    assert "\n" not in str(raised.value)


def test_a_mistake_ends_with_status_2_and_no_traceback() -> None:
    done = train_step_from_a_shell("--model=resnet19")
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no benchmark of 'resnet19'") and done.stderr.count("\n") == 1


def test_a_missing_peer_is_an_error_where_asked_for_and_a_remark_where_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(IMPLEMENTATIONS, "torch", ("x:y", ("no_such_package",), "peers"))
    message = "torch needs no_such_package, not installed here: pip install -e '.[peers]'"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        command.choose_peers(("torch",), train_step.PEERS)
    assert command.choose_peers(None, ("flax", "torch")) == (("flax",), {"torch": message})
    assert command.choose_peers((), train_step.PEERS) == ((), {})
    with pytest.raises(UserError, match="there is no implementation 'mxnet'"):
        missing("mxnet")


@pytest.mark.parametrize(
    ("module", "needs_jax"),
    [
        ("benchmarks.worker, benchmarks.harness", False),
        *(
            pytest.param(f"benchmarks.{name}", needs_jax, marks=pytest.mark.slow)
            for name, needs_jax in (("ours", True), ("train_step", False), ("scaled", True))
        ),
    ],
)
def test_a_bare_jax_machine_suffices(module: str, needs_jax: bool) -> None:
    """jax, flax, optax and numpy; a worker begins and the driver does without them too.

    JAX in the process of a peer would share its threads and count in its memory.
    """
    found = f"[name for name in '{NOT_NEEDED}'.split(', ') if name in sys.modules], 'jax' in sys.modules"
    code = f"import sys, {module}; print({found})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"[] {needs_jax}"


@pytest.mark.slow
def test_forced_devices_give_one_loss_and_say_what_they_are(tmp_path: Path) -> None:
    arguments = ["--model=cnn", "--image_size=16", "--batch_size=4", "--devices=1,2", "--kind=strong"]
    arguments.append("--engine=jit,fsdp,processes")
    scaling.main([*arguments, f"--json={tmp_path / 's.json'}", *QUICK])
    one, two, *others = json.loads((tmp_path / "s.json").read_text())
    for row in (two, *others):
        assert row["first_loss"] == pytest.approx(one["first_loss"], rel=1e-5)
    assert [(row["devices"], row["n_samples"]) for row in others] == [(1, 2), (2, 2)] * 2
    assert (one["devices"], two["devices"], one["note"]) == (1, 2, "")
    assert "forced host devices" in two["note"]
    assert two["flops_per_step"] == pytest.approx(one["flops_per_step"], rel=0.1)


@pytest.mark.slow
def test_a_resident_run_is_set_against_its_own_step(tmp_path: Path) -> None:
    arguments = [
        f"--config={ROOT / 'configs/quickstart.py'}",
        "--config.dataset.num_images=24",
        "--config.batch_size=4",
    ]
    arguments += ["--config.dataset.image_size=16", "--config.model.name=cnn", "--config.steps_per_call=0"]
    input.main([*arguments, "--sources=synthetic,resident,stream", f"--json={tmp_path / 'i.json'}", *QUICK])
    rows = json.loads((tmp_path / "i.json").read_text())
    assert [row["impl"] for row in rows] == ["synthetic", "resident", "stream"]
    assert rows[0]["share_of_synthetic"] == 1 and rows[1]["share_of_synthetic"] > 0
    assert rows[1]["steps_per_sample"] % rows[1]["steps_per_call"] == 0
    assert [row["num_images"] for row in rows[1:]] == [24, 24]
