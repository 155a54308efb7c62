"""Public data sets as TFDS builders: one module each, prepared as array_record without TensorFlow."""

# Name of a data set: module of this package and class.
BUILDERS = {
    "chest_xray_pneumonia": "chest_xray_pneumonia.ChestXrayPneumonia",
    "covid_ct": "covid_ct.CovidCt",
    "covid_ct_seg": "covid_ct_seg.CovidCtSeg",
    "covidx": "covidx.Covidx",
    "csv": "table.Csv",
    "darkcovid": "darkcovid.Darkcovid",
    "lgg_mri": "lgg_mri.LggMri",
    "rsna_cohen": "rsna_cohen.RsnaCohen",
    "sars_cov2_ct": "sars_cov2_ct.SarsCov2Ct",
}
