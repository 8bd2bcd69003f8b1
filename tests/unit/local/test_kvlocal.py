"""The parts of the local cluster that need no cluster."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from kvlocal import binaries, cache, images, pki
from kvlocal.__main__ import main
from kvlocal.cluster import Cluster
from kvlocal.network import MOST_CLUSTERS, Network
from kvlocal.problems import LocalError


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KVQUANT_CACHE", str(tmp_path / "cache"))


def test_a_folder_of_binaries_that_lacks_one_is_named_with_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KVQUANT_K8S_BIN", str(tmp_path))
    with pytest.raises(LocalError, match=r"neither kubelet nor controlplane"):
        binaries.component("kubelet")
    (tmp_path / "controlplane").touch()
    assert binaries.component("kubelet") == (str(tmp_path / "controlplane"), "kubelet")
    (tmp_path / "kubelet").touch()
    assert binaries.component("kubelet") == (str(tmp_path / "kubelet"),)


def test_the_version_is_the_one_of_the_go_module() -> None:
    assert binaries.kubernetes_version().startswith("v1.36.")


def test_a_cluster_that_never_was_is_an_error_that_says_how_to_make_it() -> None:
    with pytest.raises(LocalError, match="kvlocal up --name nowhere"):
        _ = Cluster("nowhere").network
    Cluster("nowhere").down()


def test_an_unknown_image_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(LocalError, match="operator, router, shadow, evaluation, engine-sim"):
        images.build("operatr")
    done = CliRunner().invoke(main, ["build-image", "operatr"])
    assert done.exit_code == 2


def test_status_without_a_cluster_says_how_to_start_one() -> None:
    assert "kvlocal up" in CliRunner().invoke(main, ["status"]).output


def test_no_two_clusters_share_an_address() -> None:
    networks = [Network(i) for i in range(MOST_CLUSTERS)]
    for attribute in ("link", "host", "node", "pods", "services", "api_service", "dns"):
        assert len({getattr(n, attribute) for n in networks}) == MOST_CLUSTERS


def test_a_digest_changes_with_contents_names_and_modes(tmp_path: Path) -> None:
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "a").write_text("1")
    seen = {cache.digest([folder])}
    (folder / "a").write_text("2")
    seen.add(cache.digest([folder]))
    (folder / "a").chmod(0o755)
    seen.add(cache.digest([folder]))
    (folder / "a").rename(folder / "b")
    seen.add(cache.digest([folder]))
    seen.add(cache.digest([folder, "stamp"]))
    assert len(seen) == 5
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "b.pyc").write_text("compiled")
    assert cache.digest([folder, "stamp"]) in seen, "what Python leaves there does not count"


def test_a_kubeconfig_holds_a_certificate_that_its_authority_signed(tmp_path: Path) -> None:
    authority = pki.make(tmp_path / "pki", ("127.0.0.1", "kubernetes.default"))
    path = authority.kubeconfig("admin", "https://127.0.0.1:1", tmp_path / "admin.conf")
    assert path.stat().st_mode & 0o077 == 0, "it is an administrator's key"
    document = yaml.safe_load(path.read_text())
    assert document["clusters"][0]["cluster"]["server"] == "https://127.0.0.1:1"
    context = ssl.create_default_context(cafile=str(tmp_path / "pki" / "ca.crt"))
    context.load_cert_chain(tmp_path / "pki" / "admin.crt", tmp_path / "pki" / "admin.key")
