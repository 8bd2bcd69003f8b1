"""What the engine refuses before it starts, how it says so, and what it understands."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from engine_sim import args, settings
from engine_sim.settings import StartError
from tests.engine_sim.running import IMAGE, environment, resolved, run_to_end


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["serve", "m", "--kv-cache-dtype", "int8"], "--kv-cache-dtype: invalid choice: 'int8'"),
        (["serve", "m", "--no-such-flag"], "unrecognized arguments: --no-such-flag"),
        (["serve", "m", "--max-model-len", "many"], "expected a whole number such as 4096"),
        (["serve", "m", "--block-size", "0"], "expected a number above 0, got '0'"),
        (["serve", "m", "--gpu-memory-utilization", "1.5"], "a share above 0, at most 1"),
        (["serve", "m", "--gpu-memory-utilization", "nan"], "a share above 0, at most 1"),
        (["serve", "m", "--watermark", "1"], "a share from 0 to below 1"),
        (["serve", "m", "--watermark", "nan"], "a share from 0 to below 1"),
        (["serve", "m", "--kv-cache-dtype-skip-layers", "first"], "layer numbers or sliding"),
        (["serve", "m", "--fingerprint-mode", "custom"], "custom needs --fingerprint-value"),
        (["serve", "m", "--kv-cache-dt", "fp8"], "unrecognized arguments: --kv-cache-dt"),
        (["bench"], "invalid choice: 'bench'"),
        ([], "required: command"),
    ],
)
def test_a_wrong_command_line_ends_with_code_2_and_names_the_mistake(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        args.parse(words)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("KVSIM_TIME_SCALE", "fast", "expected a number from 0.01 to 1000000, got 'fast'"),
        ("KVSIM_TIME_SCALE", "0", "expected a number from 0.01"),
        ("KVSIM_TIME_SCALE", "nan", "expected a number from 0.01"),
        ("KVSIM_STARTUP_SECONDS", "-1", "expected a number from 0 to"),
        ("KVSIM_SEED", "x", "expected a number from 0 to"),
        ("KVSIM_OOM_BYTES", "1G", "expected a number from 0 to"),
        ("KVSIM_LONG_TOKENS", "0", "expected a number from 1 to 1000000000, got '0'"),
        ("KVSIM_LONG_TOKENS", "16K", "expected a number from 1 to"),
    ],
)
def test_a_wrong_number_in_the_environment_is_named(name: str, text: str, said: str) -> None:
    with pytest.raises(StartError, match=re.escape(said)) as raised:
        settings.resolve(args.parse(["serve", "m"]), {name: text})
    assert str(raised.value).startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("decode_slowdown=3", "names no dtype; write dtype:fault, or *:decode_slowdown=3"),
        ("int8:decode_slowdown=3", "unknown dtype 'int8'"),
        ("fp8:slow", "unknown fault 'slow' in 'fp8:slow'; choose from decode_slowdown,"),
        ("fp8:", "unknown fault ''"),
        ("fp8:decode_slowdown", "takes a factor above 0, at most 1000, e.g. decode_slowdown=3"),
        ("fp8:decode_slowdown=0", "takes a factor above 0"),
        ("fp8:decode_slowdown=nan", "takes a factor above 0"),
        ("fp8:error_rate=2", "takes a share from 0 to 1"),
        ("fp8:exit_after=-1", "takes a number of requests"),
        ("fp8:exit_at_kv_usage=90%", "takes a share from 0 to 1"),
        ("fp8:ignore_dtype=yes", "ignore_dtype takes no value"),
        ("fp8:flip_rate=2", "flip_rate takes a share from 0 to 1, e.g. flip_rate=0.02"),
        ("fp8:drop_citations=half", "drop_citations takes a share from 0 to 1"),
        ("fp8:drop_citations_beyond=16K", "takes a number of tokens"),
        ("fp8:break_json", "break_json takes a share from 0 to 1, e.g. break_json=0.3"),
        ("fp8:refuse=nan", "refuse takes a share from 0 to 1"),
        ("fp8:drift=-1", "drift takes nats per token from 0 to 10, e.g. drift=0.1"),
        ("auto:fail_start;fp8:oops", "unknown fault 'oops'"),
    ],
)
def test_wrong_faults_are_named_even_when_they_are_for_another_dtype(text: str, said: str) -> None:
    with pytest.raises(StartError, match=re.escape(said)) as raised:
        resolved("--kv-cache-dtype", "auto", faults=text)
    assert str(raised.value).startswith("KVSIM_FAULTS: ")


@pytest.mark.parametrize(
    ("dtype", "said"),
    [
        ("nvfp4_4over6", "needs a Blackwell GPU"),
        ("ultraquant_4bit", "needs an AMD GPU"),
        ("fp8_inc", "needs a Gaudi accelerator"),
        ("fp8_ds_mla", "multi-head latent attention"),
    ],
)
def test_a_dtype_that_the_gpu_cannot_run_does_not_start(dtype: str, said: str) -> None:
    with pytest.raises(StartError, match="No valid attention backend found for cuda") as raised:
        resolved("--kv-cache-dtype", dtype)
    assert said in str(raised.value)


def test_a_context_longer_than_the_cache_does_not_start() -> None:
    with pytest.raises(StartError, match=r"max seq len \(32768\), \(4\.00 GiB KV cache is needed"):
        resolved("--kv-cache-memory-bytes", "2G")


def test_a_failed_start_ends_with_code_1_and_says_why() -> None:
    ended = run_to_end("--kv-cache-memory-bytes", "1k")
    assert ended.returncode == 1
    assert "EngineCore failed to start: No available memory for the cache blocks" in ended.stdout


def test_a_wrong_fault_ends_with_code_1_and_says_what_it_takes() -> None:
    ended = run_to_end(extra={"KVSIM_FAULTS": "int4_per_token_head:drift=much"})
    assert ended.returncode == 1
    assert "drift takes nats per token from 0 to 10, e.g. drift=0.1" in ended.stdout


def test_the_fault_fail_start_ends_with_code_1_before_it_listens() -> None:
    ended = run_to_end("--kv-cache-dtype", "fp8", extra={"KVSIM_FAULTS": "fp8:fail_start"})
    assert ended.returncode == 1
    assert "No available memory for the cache blocks" in ended.stdout
    assert "Starting vLLM API server" not in ended.stdout


@pytest.mark.parametrize(
    ("text", "tokens"), [("4096", 4096), ("4k", 4000), ("4K", 4096), ("1.5k", 1500)]
)
def test_sizes_are_read_as_vllm_reads_them(text: str, tokens: int) -> None:
    assert resolved("--max-model-len", text).max_model_len == tokens


def test_flags_may_be_spelt_with_underscores_and_equals_signs() -> None:
    chosen = args.parse(["serve", "m", "--kv_cache_dtype=fp8", "--max_num_seqs", "7"])
    assert (chosen.kv_cache_dtype, chosen.max_num_seqs) == ("fp8", 7)


def test_the_value_of_a_flag_keeps_its_underscores() -> None:
    chosen = args.parse(["serve", "m", "--fingerprint-value=a_b", "--served-model-name", "c_d"])
    assert (chosen.fingerprint_value, chosen.served_model_name) == ("a_b", ["c_d"])


def test_flags_that_change_nothing_are_accepted() -> None:
    flags = ["--enforce-eager", "--seed", "7", "--no-enable-chunked-prefill", "--dtype", "bfloat16"]
    assert args.parse(["serve", "m", *flags]).kv_cache_dtype == "auto"


def test_the_api_server_module_takes_the_model_as_a_flag() -> None:
    chosen = args.parse(["--model", "llama", "--kv-cache-dtype", "fp8"], command=False)
    assert (chosen.model, chosen.kv_cache_dtype) == ("llama", "fp8")


@pytest.mark.parametrize(
    "program",
    [
        [sys.executable, str(IMAGE / "bin" / "vllm"), "serve", "m"],
        [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", "m"],
        [sys.executable, "-m", "engine_sim", "m"],
    ],
    ids=["vllm serve", "api_server", "engine_sim"],
)
def test_every_way_to_start_the_image_reaches_the_engine(program: list[str]) -> None:
    faults = {"KVSIM_FAULTS": "fp8:fail_start"}
    ended = subprocess.run(
        [*program, "--kv-cache-dtype", "fp8"],
        env=environment(faults),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ended.returncode == 1, ended.stderr
    assert "simulated GPU" in ended.stdout
