from typing import Any

import pytest

from kvquant.engines import vllm
from kvquant.errors import TemplateError


@pytest.mark.parametrize(
    "container",
    [
        {"name": "c", "image": "vllm/vllm-openai:v0.32.0", "args": ["--model", "m"]},
        {"name": "c", "image": "registry.example/ml/vllm-openai-cpu@sha256:0abc"},
        {"name": "c", "image": "x", "command": ["vllm", "serve"], "args": ["m"]},
        {"name": "c", "image": "x", "command": ["/opt/bin/vllm", "serve", "m"]},
        {
            "name": "c",
            "image": "x",
            "command": ["python3", "-m", "vllm.entrypoints.openai.api_server"],
        },
    ],
)
def test_recognises_the_usual_ways_to_start_vllm(container: dict[str, object]) -> None:
    assert vllm.recognises(container)


@pytest.mark.parametrize(
    "container",
    [
        {"name": "c", "image": "nginx:1.27"},
        {"name": "c", "image": "x/vllm-openai:1", "command": ["sleep", "1"]},
        {"name": "c", "image": "ghcr.io/someone/not-vllm/proxy:1"},
        {"name": "c", "image": "x", "command": ["vllm", "bench"]},
    ],
)
def test_does_not_take_something_else_for_vllm(container: dict[str, object]) -> None:
    assert not vllm.recognises(container)


def test_refuses_a_shell_line_and_says_what_to_write_instead() -> None:
    container = {"name": "engine", "command": ["/bin/sh", "-c", "vllm serve m --port 8000"]}
    with pytest.raises(TemplateError, match=r"'engine' .*command as a list") as caught:
        vllm.recognises(container)
    assert caught.value.reason == "EngineInShellLine"


def test_replaces_the_dtype_wherever_it_was_given_and_changes_nothing_else() -> None:
    container: dict[str, Any] = {
        "name": "c",
        "command": ["vllm", "serve", "m", "--kv-cache-dtype=auto"],
        "args": ["--port", "9000", "--kv-cache-dtype", "fp8", "--max-num-seqs", "64"],
        "env": [{"name": "A", "value": "1"}],
        "newFieldOfTomorrow": {"kept": True},
    }
    changed = vllm.with_dtype(container, "int8_per_token_head", fingerprint=None)
    assert changed == {
        **container,
        "command": ["vllm", "serve", "m"],
        "args": [
            "--port", "9000", "--max-num-seqs", "64", "--kv-cache-dtype", "int8_per_token_head",
        ],
    }  # fmt: skip
    assert container["args"][3] == "fp8", "the input is not touched"


def test_replaces_a_fingerprint_of_the_users() -> None:
    container = {"name": "c", "args": ["m", "--fingerprint-mode", "full"]}
    changed = vllm.with_dtype(container, "fp8", fingerprint="kvq-1")
    assert changed["args"] == [
        "m", "--kv-cache-dtype", "fp8", "--fingerprint-mode", "custom",
        "--fingerprint-value", "kvq-1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "dtype"),
    [
        ([], "auto"),
        (["--kv-cache-dtype", "fp8"], "fp8"),
        (["--kv-cache-dtype=fp8", "--kv-cache-dtype", "auto"], "auto"),
    ],
)
def test_reads_the_dtype_as_argparse_would(args: list[str], dtype: str) -> None:
    assert vllm.dtype_of({"args": args}) == dtype


def test_reads_the_port_and_refuses_nonsense() -> None:
    assert vllm.port_of({"args": ["m"]}) == 8000
    assert vllm.port_of({"command": ["vllm", "serve", "--port=9001"]}) == 9001
    with pytest.raises(TemplateError, match="--port many: write a number"):
        vllm.port_of({"name": "c", "args": ["--port", "many"]})


def test_short_names_become_the_engines_own() -> None:
    assert vllm.resolve_dtype("int8") == "int8_per_token_head"
    assert vllm.resolve_dtype("int4") == "int4_per_token_head"
    assert vllm.resolve_dtype("fp8") == "fp8"
