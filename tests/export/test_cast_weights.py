"""`cast_file`, checked with safetensors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from scen_cli.export.output_files import FLOATS, cast_file

KINDS = [*FLOATS.values(), torch.int64, torch.uint8, torch.bool]
SHAPES = st.lists(st.integers(0, 5), max_size=3)
NAMES = st.text(alphabet="ab.é", min_size=1, max_size=4).map(lambda name: f"scen.{name}" if "a" in name else name)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(NAMES, st.tuples(SHAPES, st.sampled_from(KINDS)), max_size=5),
    st.sampled_from(list(FLOATS.values())),
    st.sampled_from([None, {"format": "pt", "é": "ö"}]),
)
def test_the_file_equals_casting_each_tensor(tmp_path_factory, kinds, dtype, metadata):
    path = tmp_path_factory.mktemp("cast") / "model.safetensors"
    tensors = {name: (torch.randn(shape) * 3).to(kind) for name, (shape, kind) in kinds.items()}
    save_file(tensors, path, metadata)
    cast_file(path, dtype, keep=lambda name: name.startswith("scen."))
    found = load_file(path)
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        keeps = name.startswith("scen.") or not tensor.is_floating_point()
        expected = tensor if keeps else tensor.to(dtype)
        assert found[name].dtype == expected.dtype
        assert found[name].shape == expected.shape
        assert torch.equal(found[name], expected)
    with safe_open(path, "pt") as file:
        assert file.metadata() == metadata
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_tensors_larger_than_a_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr("scen_cli.export.output_files.CHUNK", 64)
    tensors = {"one": torch.randn(7, 9), "scen.two": torch.randn(50)}
    save_file(tensors, tmp_path / "model.safetensors")
    cast_file(tmp_path / "model.safetensors", torch.bfloat16, keep=lambda name: name.startswith("scen."))
    found = load_file(tmp_path / "model.safetensors")
    assert torch.equal(found["one"], tensors["one"].bfloat16())
    assert torch.equal(found["scen.two"], tensors["scen.two"])


@pytest.mark.parametrize("dtype", list(FLOATS.values()))
def test_tensors_of_the_target_dtype_do_not_change(tmp_path, dtype):
    path = tmp_path / "model.safetensors"
    save_file({"one": torch.randn(3, 4).to(dtype), "two": torch.arange(3)}, path)
    before = path.read_bytes()
    cast_file(path, dtype, keep=lambda name: False)
    assert load_file(path).keys() == {"one", "two"}
    assert path.read_bytes()[-60:] == before[-60:]
