"""The checkpoints, loaded once by us, and the tiny one once by plain diffusers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pipelines.compat import declare_torchvision_operators

# Before any test file imports diffusers, as `load_pipeline` does.
declare_torchvision_operators()

from pipelines.demonstration import DEMO_CHECKPOINT  # noqa: E402
from pipelines.flux2 import Flux2  # noqa: E402
from pipelines.loading import load_pipeline  # noqa: E402
from pipelines.mistral import Mistral  # noqa: E402
from pipelines.tools.demo_model import write_demo_model  # noqa: E402
from pipelines.types import LoadOptions, Model  # noqa: E402


@pytest.fixture(scope="session")
def flux2(demo_model: Path) -> Flux2:
    """Return our pipeline over the tiny checkpoint, on the CPU in float32."""
    return load_on_cpu(demo_model)


@pytest.fixture(scope="session")
def demonstration() -> Flux2:
    """Return our pipeline over the demonstration checkpoint, on the CPU in float32."""
    return load_on_cpu(DEMO_CHECKPOINT)


def load_on_cpu(folder: Path) -> Flux2:
    """Load a folder as the runner does."""
    options = LoadOptions(model=folder, device="cpu")
    pipeline, _ = load_pipeline(options)
    assert isinstance(pipeline, Flux2)
    return pipeline


@pytest.fixture(scope="session")
def oracle(demo_model: Path, flux2: Flux2) -> Any:  # noqa: ARG001  (loading prepares imports)
    """Return diffusers' own pipeline over the same checkpoint, loaded as anybody would."""
    from diffusers import Flux2Pipeline

    pipe = Flux2Pipeline.from_pretrained(demo_model, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def klein_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny distilled klein."""
    folder = tmp_path_factory.mktemp("klein") / "distilled"
    write_demo_model(folder, model=Model.KLEIN_4B)
    return folder


@pytest.fixture(scope="session")
def klein_base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny klein with true guidance, whose LM head is not its embedding."""
    folder = tmp_path_factory.mktemp("klein") / "base"
    write_demo_model(folder, seed=1, model=Model.KLEIN_9B_BASE)
    return folder


@pytest.fixture(scope="session")
def klein(klein_model: Path) -> Flux2:
    """Return our pipeline over the tiny distilled klein, on the CPU in float32."""
    return load_on_cpu(klein_model)


@pytest.fixture(scope="session")
def klein_base(klein_base_model: Path) -> Flux2:
    """Return our pipeline over the tiny klein with true guidance, on the CPU in float32."""
    return load_on_cpu(klein_base_model)


@pytest.fixture(scope="session")
def mistral(oracle: Any) -> Mistral:
    """Return the whole text encoder of the tiny checkpoint as a language model."""
    return Mistral(oracle, torch.device("cpu"))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Compute in one thread: in so small a model the others would only be waited for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def references(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Return three reference images of different shapes, the last one above the area limit."""
    folder = tmp_path_factory.mktemp("references")
    paths = []
    for index, (size, colour) in enumerate(
        [((160, 128), "crimson"), ((210, 305), "teal"), ((1300, 900), "gold")]
    ):
        picture = Image.effect_noise(size, 60).convert("RGB")
        picture.paste(colour, (20, 20, size[0] // 2, size[1] // 2))
        path = folder / f"{index}.png"
        picture.save(path)
        paths.append(path)
    return tuple(paths)
