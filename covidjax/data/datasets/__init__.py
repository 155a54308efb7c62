"""Public data sets as TFDS builders: one module each, prepared as array_record without TensorFlow."""

# Module of this package: its class.
BUILDERS = {
    "chest_xray_pneumonia": "ChestXrayPneumonia",
    "covid_ct": "CovidCt",
    "covid_ct_seg": "CovidCtSeg",
    "covidx": "Covidx",
    "csv": "Csv",
    "darkcovid": "Darkcovid",
    "lgg_mri": "LggMri",
    "rsna_cohen": "RsnaCohen",
    "sars_cov2_ct": "SarsCov2Ct",
}
