"""A trained network of a workdir as a file for other programs."""

from pathlib import Path

from covidjax import config as configs
from covidjax.checkpoint.checkpoint import Which
from covidjax.command import prepare_process
from covidjax.errors import UserError
from covidjax.evaluate.members import Mixture, load_network
from covidjax.weights import export


def run(workdir: Path, output: Path, checkpoint: Which | None) -> None:
    """Writes what `weights.export.write` writes of a run, and prints notes. Raises UserError for an ensemble."""
    prepare_process(configs.of_workdir(workdir).precision)
    trained = load_network(workdir, checkpoint)
    if isinstance(trained, Mixture):
        raise UserError(f"{workdir} is an ensemble: export its members, {', '.join(m.name for m in trained.members)}")
    notes = export.write(trained, output)
    print(*trained.notes, f"{trained.origin}, written: {output}", *notes, sep="\n")
    print("Research use only - not for clinical decisions.")
