"""Manifests, indexes, configs: what is taken, and what is refused by which field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisord.contracts.errors import InvalidArgument
from supervisord.images.oci import documents, media, names
from supervisord.images.oci.documents import Descriptor

_DIGEST = "sha256:" + "0" * 64
_OTHER = "sha256:" + "1" * 64


def _descriptor(kind: str = media.CONFIG, **more: Any) -> dict[str, Any]:
    return {"mediaType": kind, "digest": _DIGEST, "size": 2, **more}


def _manifest(**more: Any) -> dict[str, Any]:
    return {"schemaVersion": 2, "config": _descriptor(), "layers": [], **more}


def _raw(value: object) -> bytes:
    return json.dumps(value).encode()


def test_an_image() -> None:
    layer = _descriptor(f"{media.LAYER}+gzip", annotations={"a": "b"}, urls=["https://u"])
    found = documents.manifest(_raw(_manifest(layers=[layer], extra={"x": [1]})), _DIGEST)
    assert found.config.media_type == media.CONFIG
    (only,) = found.layers or ()
    assert (only.digest, only.size, only.annotations) == (_DIGEST, 2, {"a": "b"})
    assert only.urls == ("https://u",)


def test_an_index() -> None:
    platform = {"os": "linux", "architecture": "arm64", "variant": "v8", "os.features": ["x"]}
    one = _descriptor(media.MANIFEST, platform=platform)
    found = documents.index(_raw({"schemaVersion": 2, "manifests": [one]}), _DIGEST)
    assert str((found.manifests or ())[0].target) == "linux/arm64"
    assert documents.index(b'{"manifests": null}', _DIGEST).manifests is None


def test_a_config() -> None:
    found = documents.config(
        _raw(
            {
                "os": "linux",
                "architecture": "arm",
                "variant": "v6",
                "rootfs": {"type": "layers", "diff_ids": [_DIGEST]},
                "config": {"Env": None},
            }
        ),
        _DIGEST,
    )
    assert list(found.diff_ids) == [_DIGEST]
    assert str(found.platform) == "linux/arm/v6"
    assert documents.config(b"{}", _DIGEST).platform is None


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (b"", "manifest sha256:0+: "),
        (b"[]", "Expected `object`"),
        (b"\xff{}", "manifest sha256:0+: "),
        (b"[" * 100_000, "manifest sha256:0+: "),
        (_raw({}), "config"),
        (_raw(_manifest(manifests=[])), "an index or an old manifest"),
        (_raw(_manifest(fsLayers=[])), "an index or an old manifest"),
        (_raw(_manifest(mediaType=media.INDEX)), "is not a manifest's"),
        (_raw(_manifest(config=_descriptor(digest="sha256:xyz"))), r"config\[0\]: 'sha256:xyz'"),
        (_raw(_manifest(layers=[_descriptor(size=-1)])), r"layers\[0\]: size -1"),
        (_raw(_manifest(layers=[_descriptor(size=1 << 60)])), r"layers\[0\]: size"),
        (_raw(_manifest(layers=[_descriptor(size="2")])), r"size"),
        (_raw(_manifest(layers=[_descriptor()] * 10_001)), "more than 10000"),
    ],
)
def test_a_manifest_that_is_wrong(value: bytes, rule: str) -> None:
    with pytest.raises(InvalidArgument, match=rule):
        documents.manifest(value, _DIGEST)


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ({"manifests": [], "layers": []}, "config or layers of a manifest"),
        ({"manifests": [], "mediaType": media.MANIFEST}, "is not an index's"),
        ({"manifests": [_descriptor(digest="")]}, r"manifests\[0\]: '' is no digest"),
    ],
)
def test_an_index_that_is_wrong(value: object, rule: str) -> None:
    with pytest.raises(InvalidArgument, match=rule):
        documents.index(_raw(value), _DIGEST)


def test_a_config_that_is_wrong() -> None:
    with pytest.raises(InvalidArgument, match=r"rootfs.diff_ids\[0\]: 'x' is no digest"):
        documents.config(_raw({"rootfs": {"diff_ids": ["x"]}}), _DIGEST)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["config", "layers", "manifests", "digest", "size", "rootfs"]),
                inner,
            )
        ),
        max_leaves=12,
    )
)
def test_no_json_breaks_a_reader(value: object) -> None:
    for read in (documents.manifest, documents.index, documents.config):
        try:
            read(_raw(value), _DIGEST)
        except InvalidArgument as error:
            assert _DIGEST in str(error)


def test_labels_that_hold_children() -> None:
    config = Descriptor(media.CONFIG, _DIGEST, 1)
    layers = [Descriptor(media.LAYER, _DIGEST, 1), Descriptor(media.DOCKER_LAYER, _OTHER, 1)]
    manifest = Descriptor(media.MANIFEST, _OTHER, 1)
    other = Descriptor("text/plain", _OTHER, 1)
    held = "containerd.io/gc.ref.content"
    assert names.holds([config, *layers, manifest, other]) == {
        f"{held}.config": _DIGEST,
        f"{held}.l.0": _DIGEST,
        f"{held}.l.1": _OTHER,
        f"{held}.m.0": _OTHER,
        f"{held}.0": _OTHER,
    }
    refs = [names.ref_of(one).partition("-")[0] for one in (config, *layers, manifest, other)]
    assert refs == ["config", "layer", "layer", "manifest", "unknown"]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"mediaType": media.DOCKER_LIST, "manifests": []}, media.DOCKER_LIST),
        ({"schemaVersion": 2, "manifests": []}, media.INDEX),
        ({"schemaVersion": 2, "config": {}, "layers": []}, media.MANIFEST),
        ({"schemaVersion": 1, "fsLayers": []}, media.DOCKER_SCHEMA1),
        ({"mediaType": "text/html", "config": {}}, media.MANIFEST),
        ({"hello": "world"}, ""),
        ([], ""),
        ("<html>", ""),
    ],
)
def test_a_document_without_a_type(value: object, kind: str) -> None:
    assert documents.kind(json.dumps(value).encode()) == kind
    assert documents.kind(b"\xff\xfe") == ""


def test_a_blob_within_its_descriptor() -> None:
    empty = {
        "mediaType": "application/vnd.oci.empty.v1+json",
        "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        "size": 2,
        "data": "e30=",
    }
    found = documents.manifest(json.dumps({"config": empty}).encode(), "d")
    assert found.config.data == b"{}"
    for wrong in ({"size": 3}, {"data": "e3s="}):
        with pytest.raises(InvalidArgument, match=r"config\[0\]: data is not what digest and size"):
            documents.manifest(json.dumps({"config": {**empty, **wrong}}).encode(), "d")
    with pytest.raises(InvalidArgument, match="base64"):
        documents.manifest(json.dumps({"config": {**empty, "data": "!"}}).encode(), "d")
