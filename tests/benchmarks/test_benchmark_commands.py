import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import command, input, scaling, train_step
from benchmarks.case import IMPLEMENTATIONS
from covidjax.errors import UserError

ROOT = Path(__file__).parents[2]
QUICK = ["--samples=2", "--min_sample_seconds=0.01", "--warm_up_steps=1", "--max_foreign_share=1000"]
NOT_NEEDED = "clu, orbax, grain, ml_collections, PIL, matplotlib, sklearn, scipy, h5py, tensorboard, torch, keras"


def without_python_path() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.mark.slow
def test_covidjax_beside_plain_flax_leaves_records_a_chart_and_a_profile(tmp_path: Path) -> None:
    """As a user starts it, in a folder that is not the repository's."""
    arguments = ["--model=cnn", "--image_size=16", "--batch_size=4", "--peers=flax", "--json=r.json", "--csv=r.csv"]
    arguments += ["--mode=inference", "--freeze=none,backbone"]  # in inference nothing is frozen: one piece of work
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "benchmarks/train_step.py"),
            *arguments,
            "--plot=r.png",
            "--profile=traces",
            *QUICK,
        ],
        cwd=tmp_path,
        env=without_python_path(),
        capture_output=True,
        text=True,
        check=False,
    )
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
    ("arguments", "message"),
    [
        (["--model=resnet19"], "there is no benchmark of 'resnet19': allowed are cnn, "),
        (["--peers=mxnet"], "there is no peer 'mxnet': allowed are flax, "),
        (["--peers=matmul_jax"], "there is no peer 'matmul_jax'"),
        (["--precision=float8"], "--precision is 'float8': allowed are float32, bfloat16"),
        (["--freeze=until:layer9"], "with one of stem, layer1, layer2, layer3, layer4$"),
        (["--batch_size=0"], "argument --batch_size: "),
        (["--samples=0"], "--samples is 0"),
        (["--ops=fast"], "--ops is 'fast': allowed are xla, auto, native"),
        (["--json=nowhere/r.json"], "there is no folder .*nowhere for r.json"),
        (["--modle=cnn"], "unrecognized arguments: --modle=cnn"),
        (["--model=vgg16", "--image_size=100"], "take a multiple of 32"),
    ],
)
def test_mistakes_are_said_in_one_line_before_anything_runs(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        train_step.main(arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch_size=6", "--devices=1,4"], "--batch_size 6 does not divide over 4 devices"),
        (["--engine=ddp"], "--engine is 'ddp': allowed are jit, pmap, pmap_local"),
    ],
)
def test_impossible_scalings_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        scaling.main(arguments)


def test_a_mistake_ends_with_status_2_and_no_traceback() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/train_step.py"), "--model=resnet19"],
        env=without_python_path(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no benchmark of 'resnet19'") and done.stderr.count("\n") == 1


def test_a_missing_peer_is_an_error_where_it_was_asked_for_and_a_remark_where_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(IMPLEMENTATIONS, "torch", ("x:y", ("no_such_package",), "peers"))
    with pytest.raises(
        UserError, match=r"^torch needs no_such_package, not installed here: pip install -e '.\[peers\]'$"
    ):
        command.choose_peers(("torch",), train_step.PEERS)
    chosen, absent = command.choose_peers(None, ("flax", "torch"))
    assert chosen == ("flax",) and list(absent) == ["torch"]
    assert command.choose_peers((), train_step.PEERS) == ((), {})


@pytest.mark.slow
@pytest.mark.parametrize(
    "module", ["benchmarks.ours", "benchmarks.worker", "benchmarks.train_step", "benchmarks.scaled"]
)
def test_a_bare_jax_machine_suffices(module: str) -> None:
    """jax, flax, optax and numpy; the driver does without them too, since the device belongs to the workers."""
    found = f"[name for name in '{NOT_NEEDED}'.split(', ') if name in sys.modules], 'jax' in sys.modules"
    code = f"import sys, {module}; print({found})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    needs_jax = module in ("benchmarks.ours", "benchmarks.scaled")
    assert done.stdout.strip() == f"[] {needs_jax}"


@pytest.mark.slow
def test_forced_devices_give_one_loss_and_say_what_they_are(tmp_path: Path) -> None:
    arguments = ["--model=cnn", "--image_size=16", "--batch_size=4", "--devices=1,2", "--kind=strong", "--engine=jit"]
    scaling.main([*arguments, f"--json={tmp_path / 's.json'}", *QUICK])
    one, two = json.loads((tmp_path / "s.json").read_text())
    assert one["first_loss"] == pytest.approx(two["first_loss"], rel=1e-5)
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
