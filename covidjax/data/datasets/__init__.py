"""Public data sets as TFDS builders, prepared as array_record without TensorFlow."""

import importlib
from typing import Any

from covidjax.errors import UserError

# Name of a data set: module of this package and class.
BUILDERS = {
    "chest_xray_pneumonia": "folders.ChestXrayPneumonia",
    "covid_ct": "ct.CovidCt",
    "covid_ct_seg": "ct.CovidCtSeg",
    "covidx": "radiographs.Covidx",
    "csv": "folders.Csv",
    "darkcovid": "folders.Darkcovid",
    "lgg_mri": "folders.LggMri",
    "rsna_cohen": "radiographs.RsnaCohen",
    "sars_cov2_ct": "folders.SarsCov2Ct",
}


def import_with_extra(module: str) -> Any:
    """A module of covidjax that needs the libraries of the extra `data`. Raises UserError that says to install them."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library == "covidjax":
            raise
        raise UserError(f"prepared data sets need {library}: pip install 'covidjax[data]'") from error
