"""Public data sets as TFDS builders, prepared as array_record without TensorFlow."""

# Name of a data set: module of this package and class.
BUILDERS = {
    "chexpert": "findings_sets.CheXpert",
    "chestxray14": "findings_sets.ChestXray14",
    "chest_xray_pneumonia": "folders.ChestXrayPneumonia",
    "chest_xray_pneumonia_printed": "printed.ChestXrayPneumoniaPrinted",
    "covid_ct": "ct.CovidCt",
    "covid_ct_printed": "printed.CovidCtPrinted",
    "covid_ct_seg": "ct.CovidCtSeg",
    "covidx": "radiographs.Covidx",
    "csv": "folders.Csv",
    "darkcovid": "folders.Darkcovid",
    "jsrt": "lungs.Jsrt",
    "lgg_mri": "folders.LggMri",
    "medmnist": "medmnist.MedMnist",
    "montgomery": "lungs.Montgomery",
    "padchest": "findings_sets.PadChest",
    "rsna_cohen": "radiographs.RsnaCohen",
    "sars_cov2_ct": "folders.SarsCov2Ct",
    "sars_cov2_ct_printed": "printed.SarsCov2CtPrinted",
    "shenzhen": "lungs.Shenzhen",
    "vindr_cxr": "findings_sets.VinDrCxr",
}
