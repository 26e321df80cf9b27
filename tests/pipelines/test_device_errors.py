"""Device errors come out under our names, and hold on to nothing."""

import pytest
import torch

from pipelines.device_errors import on_device
from pipelines.errors import DeviceLostError, OutOfMemoryError


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (torch.OutOfMemoryError("full"), OutOfMemoryError),
        (torch.AcceleratorError("illegal access"), DeviceLostError),
    ],
)
def test_a_device_error_is_translated(raised: Exception, expected: type[Exception]) -> None:
    """Without the old error, whose frames would keep tensors alive."""

    def fail() -> None:
        raise raised

    with pytest.raises(expected, match=str(raised)) as caught:
        on_device(fail)
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None


def test_all_else_passes() -> None:
    """Results, and errors that are not the device's."""
    assert on_device(lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        on_device(lambda: 1 / 0)
