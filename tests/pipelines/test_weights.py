"""Reading safetensors: every tensor once, to its place, and what does not fit is named."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from pipelines.errors import ModelNotFoundError
from pipelines.weights import assign, check_whole, read_tensors

CPU = torch.device("cpu")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Return two files with twenty tensors each."""
    paths = [tmp_path / f"{number}.safetensors" for number in range(2)]
    for number, path in enumerate(paths):
        tensors = {f"{number}.{i}.weight": torch.full((2, i + 1), float(i)) for i in range(20)}
        safetensors.torch.save_file(tensors, path)
    return paths


def test_every_tensor_is_read_once(files: list[Path]) -> None:
    """Whatever thread reads it, and the progress ends at one, without going back."""
    taken: list[tuple[str, Tensor]] = []
    fractions: list[float] = []
    read_tensors(files, CPU, lambda name, tensor: taken.append((name, tensor)), fractions.append)
    assert sorted(name for name, _ in taken) == sorted(
        f"{number}.{i}.weight" for number in range(2) for i in range(20)
    )
    for name, tensor in taken:
        i = int(name.split(".")[1])
        assert torch.equal(tensor, torch.full((2, i + 1), float(i)))
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_what_goes_wrong_with_a_tensor_ends_the_reading(files: list[Path]) -> None:
    """The error of whoever takes them reaches whoever asked."""

    def refuse(_name: str, _tensor: Tensor) -> None:
        raise ValueError("not this one")

    with pytest.raises(ValueError, match="not this one"):
        read_tensors(files, CPU, refuse)


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    """With what is wrong with it."""
    path = tmp_path / "bad.safetensors"
    path.write_bytes(b"not weights")
    with pytest.raises(ModelNotFoundError, match="bad.safetensors: cannot be read"):
        read_tensors([path], CPU, lambda _name, _tensor: None)


def test_tensors_go_to_their_places_in_their_types() -> None:
    """Parameters and buffers, from "meta" to a whole model."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).to(torch.bfloat16)
    with pytest.raises(ModelNotFoundError, match="the weights lack 0.weight, 0.bias, 1.weight and"):
        check_whole(model)
    for name, place in model.state_dict().items():
        assign(model, name, torch.ones(place.shape, dtype=torch.float32))
    check_whole(model)
    assert model[0].weight.dtype is torch.bfloat16
    assert not model[0].weight.requires_grad
    assert model[1].running_mean.dtype is torch.bfloat16
    assert isinstance(model[0].weight, nn.Parameter)


@pytest.mark.parametrize(
    ("name", "shape", "problem"),
    [
        ("0.weight", (2, 3), r"0.weight is \(2, 3\) instead of \(3, 2\)"),
        ("0.scale", (3,), "0.scale has no place"),
        ("7.weight", (3, 2), "7.weight has no place"),
    ],
)
def test_what_does_not_fit_is_named(name: str, shape: tuple[int, ...], problem: str) -> None:
    """A wrong shape, and names that the model does not have."""
    with pytest.raises(ModelNotFoundError, match=problem):
        assign(nn.Sequential(nn.Linear(2, 3)), name, torch.zeros(shape))
