"""What the images of the product have in them, and what they have not."""

from __future__ import annotations

import re

import pytest

from kvlocal import images, sbom
from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.node, pytest.mark.timeout(600)]

INSTALLS_OR_COMPILES = re.compile(
    r"(^|/)(pip[\d.]*|gcc[\d.-]*|cc|g\+\+|ld|make|ensurepip|setuptools|python-wheels)$"
    r"|(^|/)(pip|setuptools)-[^/]*\.(whl|dist-info)$"
)


@pytest.mark.parametrize("name", ["operator", "shadow", "evaluation", "router"])
def test_nothing_that_installs_or_compiles_is_left_inside(name: str) -> None:
    found = sbom.contents(images.build(name))
    left = [path for path in found.files if INSTALLS_OR_COMPILES.search(path)]
    # Folders with documentation and data of gcc's runtime libraries are no compiler.
    assert [path for path in left if not path.startswith("usr/share/gcc")] == []


@pytest.mark.parametrize("name", ["operator", "shadow", "evaluation"])
def test_what_is_inside_is_what_is_locked(name: str) -> None:
    lock = (REPOSITORY / images.lock_of(name)).read_text()
    locked = dict(re.findall(r"^([a-z0-9._-]+)==([^\s\\;]+)", lock, re.MULTILINE))
    told = sbom.packages(sbom.contents(images.build(name)))
    inside = {p.name.replace(".", "-"): p.version for p in told if p.kind == "pypi"}
    assert inside == {key.replace(".", "-"): version for key, version in locked.items()}
