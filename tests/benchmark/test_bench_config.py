from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onnxft.benchmark.config import BenchConfig, Point, Side, read_config_file
from onnxft.errors import ConfigError


def test_sides_are_baselines_then_providers() -> None:
    config = BenchConfig(providers=("openvino", "cpu"), baselines=("torch",), source="m:f")
    assert config.sides == (Side("torch", "baseline"), Side("openvino", "provider"), Side("cpu", "provider"))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"provider": ["cpu"]}, "unknown key 'provider'. Did you mean 'providers'"),
        ({"min_steps": "many"}, "min_steps"),
        ({"providers": []}, "both empty"),
        ({"providers": ["cpu", "cpu"]}, "named twice"),
        ({"providers": ["cpu", "cpu:float32"]}, "named twice"),
        ({"providers": ["opnvino"]}, "there is no provider 'opnvino'. Did you mean 'openvino'?"),
        ({"providers": ["openvino:bf16"]}, "has no precision 'bf16'. Did you mean 'bfloat16'?"),
        ({"baselines": ["toch"]}, "Did you mean 'torch'?"),
        ({"baselines": ["torch-compiled"], "source": "m:f"}, "Did you mean 'torch-compile'"),
        ({"baselines": ["torch:float16"], "source": "m:f"}, "'torch' has no precision 'float16'"),
        ({"baselines": ["ort-training:bfloat16"], "source": "m:f"}, "'ort-training' has no precision 'bfloat16'"),
        ({"baselines": ["torch"]}, "--source"),
        ({"source": "m:f"}, "--baseline torch"),
        ({"python": {"openvin": "/x"}, "providers": ["openvino"]}, "'openvin', which does not take part"),
        ({"batch_size": 0}, "'batch_size' is 0"),
        ({"batch_size": [8, 0]}, "'batch_size' is 0"),
        ({"threads": [2, 1, 2]}, "'threads' names a number twice (2, 1, 2)"),
        ({"repeats": 0}, "'repeats' is 0"),
        ({"scenario": "inferrence"}, "scenario"),
        ({"threads": -1}, "'threads' is -1"),
        ({"warmup_steps": -1}, "'warmup_steps'"),
        ({"min_steps": 1}, "at least 2"),
        ({"min_steps": 30, "max_steps": 20}, "'max_steps' (20) is less than 'min_steps' (30)"),
        ({"time_limit_seconds": 1, "min_seconds": 3}, "must exceed 'min_seconds' (3.0)"),
        ({"device": -1}, "'device' is -1"),
        ({"provider_options": {"cuda": {"use_tf32": "1"}}}, "names the provider 'cuda', which does not take part"),
        ({"fail_under": 0}, "must be positive"),
        ({"fail_under": 2.0}, "name a second side"),
    ],
)
def test_contradictions_are_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        BenchConfig.from_mapping(values)
    assert words in str(caught.value)


def test_a_precision_is_part_of_a_side() -> None:
    plain, half = BenchConfig(providers=("openvino", "openvino:bfloat16")).sides
    assert (plain.runs, plain.precision, half.runs, half.precision) == ("openvino", "float32", "openvino", "bfloat16")


def test_an_interpreter_serves_every_precision_of_its_side() -> None:
    config = BenchConfig(
        providers=("openvino", "openvino:bfloat16", "cpu"), python={"openvino": "/a", "openvino:bfloat16": "/b"}
    )
    assert [config.interpreter(side) for side in config.sides] == ["/a", "/b", None]


def test_points_are_all_batch_sizes_with_all_threads() -> None:
    assert BenchConfig().points(16, 4) == (Point(16, 4),)
    assert BenchConfig(threads=1).points(16, 4) == (Point(16, 1),)
    swept = BenchConfig.from_mapping({"batch_size": [8, 3], "threads": [1, 2]})
    assert swept.points(16, 4) == (Point(8, 1), Point(8, 2), Point(3, 1), Point(3, 2))


def test_a_file_is_read_as_plain_values(tmp_path: Path) -> None:
    file = tmp_path / "bench.yaml"
    file.write_text("providers: [cpu, openvino]\nmin-steps: 20\nmin_seconds: 1\n")
    config = BenchConfig.from_mapping(read_config_file(file))
    assert (config.providers, config.min_steps, config.min_seconds) == (("cpu", "openvino"), 20, 1.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("source: file.py:make\n", "names code to run"),
        ("python: {cpu: /bin/sh}\n", "names code to run"),
        ("- cpu\n", "not list"),
        ("!!python/object/apply:os.getcwd []\n", "is not YAML"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_file_cannot_name_code(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "bench.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_config_file(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        read_config_file(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("scenario", "of_provider", "of_baseline", "trains"),
    [
        ("train", "train", "train", True),
        ("cached", "cached", "train", True),  # a baseline keeps no features
        ("inference", "inference", "inference", False),
    ],
)
def test_each_side_has_its_scenario(scenario: Any, of_provider: str, of_baseline: str, trains: bool) -> None:
    config = BenchConfig(providers=("cpu",), baselines=("torch",), source="m:f", scenario=scenario)
    baseline, provider = config.sides
    assert (config.scenario_of(provider), config.scenario_of(baseline)) == (of_provider, of_baseline)
    assert config.trains is trains
