"""What an image contains, read layer by layer as a container sees it."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from kvlocal import sbom
from kvlocal.images import Image
from kvlocal.sbom import Package

DPKG = """\
Package: libc6
Status: install ok installed
Version: 2.36-9

Package: gone
Status: deinstall ok config-files
"""
SITE = "opt/kvquant/lib/python3.11/site-packages"


def layer(files: dict[str, str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for path, text in files.items():
            member = tarfile.TarInfo(f"./{path}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return out.getvalue()


def metadata(name: str, version: str) -> str:
    return f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nVersion: 9\n"


def image(folder: Path, *layers: dict[str, str], base: str = "") -> Image:
    """Return an image in an OCI archive, as buildah writes it."""
    blobs: dict[str, bytes] = {}

    def keep(content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        blobs[digest] = content
        return f"sha256:{digest}"

    config = keep(json.dumps({"created": "2026-11-27T12:00:00.123456789Z"}).encode())
    manifest = {
        "config": {"digest": config},
        "layers": [{"digest": keep(layer(files))} for files in layers],
        "annotations": {"org.opencontainers.image.base.digest": base} if base else {},
    }
    index = {"manifests": [{"digest": keep(json.dumps(manifest).encode())}]}
    path = folder / "operator.tar"
    with tarfile.open(path, "w") as archive:
        contents = {f"blobs/sha256/{digest}": blob for digest, blob in blobs.items()}
        contents["index.json"] = json.dumps(index).encode()
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return Image("localhost/kvquant/operator:dev", path)


@pytest.fixture
def built(tmp_path: Path) -> Image:
    return image(
        tmp_path,
        {"var/lib/dpkg/status": DPKG, "usr/share/python-wheels/pip.whl": "", "bin/sh": ""},
        {
            f"{SITE}/PyYAML-6.0.dist-info/METADATA": metadata("PyYAML", "6.0"),
            f"{SITE}/old_name-1.dist-info/METADATA": metadata("old_name", "1"),
            "usr/share/.wh.python-wheels": "",
        },
        {f"{SITE}/.wh.old_name-1.dist-info": ""},
        base="sha256:abc",
    )


def test_what_a_later_layer_removes_is_not_inside(built: Image) -> None:
    found = sbom.contents(built)
    assert "bin/sh" in found.files
    assert not [path for path in found.files if "wheels" in path or "old_name" in path]


def test_an_emptied_folder_is_empty(tmp_path: Path) -> None:
    built = image(tmp_path, {"a/b": "", "a/c/d": ""}, {"a/.wh..wh..opq": "", "a/e": ""})
    assert set(sbom.contents(built).files) == {"a/e"}


def test_the_packages_are_those_that_are_installed(built: Image) -> None:
    assert sbom.packages(sbom.contents(built)) == [
        Package("deb", "libc6", "2.36-9"),
        Package("pypi", "pyyaml", "6.0"),
    ]


def test_the_documents_speak_of_this_very_image(built: Image, tmp_path: Path) -> None:
    spdx, provenance = (json.loads(p.read_text()) for p in sbom.write(built, tmp_path / "out"))
    digest = sbom.contents(built).digest
    assert spdx["spdxVersion"] == "SPDX-2.3"
    assert spdx["creationInfo"]["created"] == "2026-11-27T12:00:00Z"
    assert digest in spdx["documentNamespace"]
    known = {"SPDXRef-DOCUMENT", *(package["SPDXID"] for package in spdx["packages"])}
    assert len(known) == len(spdx["packages"]) + 1, "ids are unique"
    for relation in spdx["relationships"]:
        assert {relation["spdxElementId"], relation["relatedSpdxElement"]} <= known
    purls = [p["externalRefs"][0]["referenceLocator"] for p in spdx["packages"][1:]]
    assert purls == ["pkg:deb/debian/libc6@2.36-9", "pkg:pypi/pyyaml@6.0"]

    assert provenance["subject"][0]["digest"]["sha256"] == digest
    made_from = provenance["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert {"uri": "the base image", "digest": {"sha256": "abc"}} in made_from
    assert {one["uri"] for one in made_from} >= {"requirements.lock", "images/operator/Dockerfile"}
