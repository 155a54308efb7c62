"""Whether a run may go on in a workdir."""

import json
from pathlib import Path

import pytest

from covidjax import config as configs
from covidjax.errors import UserError
from covidjax.process import git_revision
from covidjax.runs import record
from tests.support import small_config


def test_run_that_is_older_than_a_key_goes_on_with_the_default_of_the_key(tmp_path: Path) -> None:
    older = configs.to_json(small_config())
    del older["augment"]["sharpen"], older["evaluate_every_steps"]
    (tmp_path / "config.json").write_text(json.dumps(older))
    record.open_workdir(tmp_path, small_config())
    with pytest.raises(UserError, match=r"another config: augment\.sharpen \(was 0\.0, now 0\.5\): use"):
        record.open_workdir(tmp_path, small_config(augment__sharpen=0.5))


def test_refusal_of_a_run_of_another_revision_names_that_as_a_cause(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(configs.to_json(small_config(remat=()))))
    for revision, told in ((git_revision(), False), ("of-before", True)):
        (tmp_path / "run.json").write_text(json.dumps({"git_revision": revision}))
        with pytest.raises(UserError, match=r"another config: remat \(was \[\], now 'none'\): use") as caught:
            record.open_workdir(tmp_path, small_config())
        assert ("the run is of another revision of covidjax" in str(caught.value)) == told
        assert "\n" not in str(caught.value)
