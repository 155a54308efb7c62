"""Whether a run may go on in a workdir."""

import json
from pathlib import Path

import pytest

from covidjax import config as configs
from covidjax.errors import UserError
from covidjax.runs import record
from tests.support import small_config


def test_run_that_is_older_than_a_key_goes_on_with_the_default_of_the_key(tmp_path: Path) -> None:
    older = configs.to_json(small_config())
    del older["augment"]["sharpen"], older["evaluate_every_steps"]
    (tmp_path / "config.json").write_text(json.dumps(older))
    record.open_workdir(tmp_path, small_config())
    with pytest.raises(UserError, match=r"another config: augment\.sharpen \(was 0\.0, now 0\.5\): use"):
        record.open_workdir(tmp_path, small_config(augment__sharpen=0.5))
