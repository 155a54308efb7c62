"""Prepared sets need libraries that the core does not: a command says so in one line, and all else goes without."""

import subprocess
import sys

LIBRARIES = ("tensorflow_datasets", "nibabel", "pydicom", "openpyxl")
WITHOUT_ANY = """
import sys
sys.modules |= dict.fromkeys({libraries})
import launch.evaluate, launch.prepare, launch.predict, launch.study, launch.train
from covidjax.config import default_config
from covidjax.data import sources
from covidjax.data.datasets.prepare import load_builder
from covidjax.errors import UserError

def attempt(what, *arguments):
    try:
        what(*arguments)
    except UserError as error:
        print(error)

dataset = default_config().dataset
dataset.name = "tfds"
attempt(sources.load, dataset, "train")
for library, name in {cases}:
    sys.modules |= dict.fromkeys({libraries})
    for there in set({libraries}) - {{library}}:
        del sys.modules[there]
    attempt(load_builder, name)
"""


def test_each_missing_library_is_named_with_what_to_install() -> None:
    names = ("covidx", "covid_ct_seg", "covidx", "covid_ct")
    cases = list(zip(LIBRARIES, names, strict=True))
    code = WITHOUT_ANY.format(libraries=LIBRARIES, cases=cases)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    named = ["tensorflow_datasets", *LIBRARIES]
    expected = [f"prepared data sets need {library}: pip install 'covidjax[data]'" for library in named]
    assert found.stdout.splitlines() == expected, found.stderr
