"""What is in an image, and what it was made from: SPDX and provenance, read from the image."""

from __future__ import annotations

import email.parser
import hashlib
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from kvlocal import images
from kvlocal.cache import REPOSITORY
from kvlocal.images import Image

Document = dict[str, Any]

WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"
DPKG = "var/lib/dpkg/status"
NO_ASSERTION = "NOASSERTION"


@dataclass(slots=True)
class Contents:
    """An image as a container sees it.

    Attributes:
        digest: Digest of its manifest, without the algorithm.
        base: Digest of the image that it was built from; empty when it does not tell.
        created: When it was built.
        files: Every path in it; with its text for what tells of packages, else None.
    """

    digest: str
    base: str
    created: str
    files: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, order=True)
class Package:
    """One package in an image: `pypi` or `deb`."""

    kind: str
    name: str
    version: str

    @property
    def purl(self) -> str:
        """Its package URL."""
        owner = "debian/" if self.kind == "deb" else ""
        return f"pkg:{self.kind}/{owner}{self.name}@{self.version}"


def contents(image: Image) -> Contents:
    """Return what is in an image; what a later layer removes is not in it."""
    with tarfile.open(image.archive) as archive:

        def blob(digest: str) -> IO[bytes]:
            found = archive.extractfile(f"blobs/{digest.replace(':', '/')}")
            assert found is not None, f"{image.archive} lacks {digest}"
            return found

        index = archive.extractfile("index.json")
        assert index is not None, f"{image.archive} is no OCI archive"
        digest = json.load(index)["manifests"][0]["digest"]
        manifest = json.load(blob(digest))
        created = json.load(blob(manifest["config"]["digest"]))["created"]
        base = (manifest.get("annotations") or {}).get("org.opencontainers.image.base.digest", "")
        found = Contents(digest.partition(":")[2], base.partition(":")[2], created)
        for layer in manifest["layers"]:
            with tarfile.open(fileobj=blob(layer["digest"])) as files:
                for path, text in _entries(files):
                    _lay(found.files, path, text)
    return found


def _entries(layer: tarfile.TarFile) -> Iterator[tuple[str, str | None]]:
    for member in layer:
        path = member.name.removeprefix("./").rstrip("/")
        told = path == DPKG or path.endswith(".dist-info/METADATA")
        file = layer.extractfile(member) if told and member.isfile() else None
        yield path, None if file is None else file.read().decode(errors="replace")


def _lay(files: dict[str, str | None], path: str, text: str | None) -> None:
    folder, _, name = path.rpartition("/")
    if not name.startswith(WHITEOUT):
        files[path] = text
        return
    gone = folder if name == OPAQUE else f"{folder}/{name.removeprefix(WHITEOUT)}".lstrip("/")
    for one in [p for p in files if p == gone or p.startswith(f"{gone}/")]:
        del files[one]


def packages(found: Contents) -> list[Package]:
    """Return the packages that an image has installed, from Debian and from PyPI."""
    parser = email.parser.HeaderParser()
    told = []
    for path, text in found.files.items():
        if text is None:
            continue
        if path == DPKG:
            entries = [parser.parsestr(entry) for entry in text.split("\n\n") if entry.strip()]
            told += [Package("deb", e["Package"], e["Version"]) for e in entries if e["Version"]]
        else:
            entry = parser.parsestr(text)
            told.append(Package("pypi", entry["Name"].lower().replace("_", "-"), entry["Version"]))
    return sorted(set(told))


def spdx(image: Image, found: Contents) -> Document:
    """Return the image's SPDX 2.3 document."""
    whole = {**_described(f"kvquant-{image.name}", found.digest[:12]), "SPDXID": "SPDXRef-image"}
    inside = [
        {
            **_described(package.name, package.version),
            "SPDXID": f"SPDXRef-{package.kind}-{number}",
            "externalRefs": [
                {
                    "referenceCategory": "PACKAGE-MANAGER",
                    "referenceType": "purl",
                    "referenceLocator": package.purl,
                }
            ],
        }
        for number, package in enumerate(packages(found))
    ]
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": f"kvquant-{image.name}",
        "documentNamespace": f"https://kvquant.dev/sbom/{image.name}/{found.digest}",
        "creationInfo": {"created": _seconds(found.created), "creators": ["Tool: kvlocal-sbom"]},
        "packages": [whole, *inside],
        "relationships": [
            _relation("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-image"),
            *(_relation("SPDXRef-image", "CONTAINS", one["SPDXID"]) for one in inside),
        ],
    }


def provenance(image: Image, found: Contents) -> Document:
    """Return the image's provenance: an in-toto statement with a SLSA predicate, unsigned."""
    made_from = [f"images/{image.name}/Dockerfile", images.lock_of(image.name)]
    dependencies = [
        {"uri": path, "digest": {"sha256": _sha256(REPOSITORY / path)}} for path in made_from
    ]
    if found.base:
        dependencies.append({"uri": "the base image", "digest": {"sha256": found.base}})
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": image.reference, "digest": {"sha256": found.digest}}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "https://kvquant.dev/buildah/v1",
                "externalParameters": {"dockerfile": made_from[0]},
                "resolvedDependencies": dependencies,
            },
            "runDetails": {"builder": {"id": "https://kvquant.dev/kvlocal"}},
        },
    }


def write(image: Image, folder: Path) -> list[Path]:
    """Write both documents of an image into a folder, and return their paths."""
    found = contents(image)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for kind, document in (
        ("spdx", spdx(image, found)),
        ("provenance", provenance(image, found)),
    ):
        path = folder / f"{image.name}.{kind}.json"
        path.write_text(json.dumps(document, indent=1) + "\n")
        written.append(path)
    return written


def _described(name: str, version: str) -> Document:
    return {
        "name": name,
        "versionInfo": version,
        "downloadLocation": NO_ASSERTION,
        "filesAnalyzed": False,
        "licenseConcluded": NO_ASSERTION,
        "licenseDeclared": NO_ASSERTION,
        "copyrightText": NO_ASSERTION,
    }


def _relation(one: str, type_: str, other: str) -> Document:
    return {"spdxElementId": one, "relationshipType": type_, "relatedSpdxElement": other}


def _seconds(instant: str) -> str:
    """Return an instant without its fraction, as SPDX wants it."""
    return f"{instant.partition('.')[0].rstrip('Z')}Z"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
