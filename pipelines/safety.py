"""The networks that look at an image before it may leave, each loaded from a local folder.

Two kinds: any image classifier of transformers, as Falconsai/nsfw_image_detection, and CompVis'
checker. Both give a score from 0 to 1; what follows from it is in `verdicts`.
"""

import copy
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from pipelines.checker_folder import STABLE_DIFFUSION, CheckerFolder, read_checker_folder
from pipelines.compat import declare_torchvision_operators
from pipelines.errors import (
    CheckerUnavailableError,
    CheckFailedError,
    DeviceLostError,
    OutOfMemoryError,
)
from pipelines.types import LoadOptions
from pipelines.verdicts import (
    DEFAULT_THRESHOLD,
    Band,
    ImageChecker,
    SecondLook,
    Verdict,
    judge,
    threshold_at,
)

_MARGIN_SCALE = 0.02
"""How much of CompVis' cosine turns a score of 0.5 into 0.73: the widest of its usual margins."""

_MARGIN_STEP = 0.0005
"""Half of the last digit of these margins, which are rounded: 0.001 is flagged, 0.000 is not."""


class Scorer(Protocol):
    """One network: preprocessed pixels to how sure it is that they must not be shown."""

    def score(self, pixels: torch.Tensor) -> torch.Tensor:
        """Turn (1, 3, H, W) into one number from 0 to 1, in float32."""
        ...


def make_checker(
    options: LoadOptions, second_look: SecondLook | None = None
) -> ImageChecker | None:
    """Load the checker that the operator chose, or return None where nothing is to be checked.

    Raises as `load_checker` does.
    """
    if options.safety is None:
        return None
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return load_checker(
        options.safety.folder,
        device,
        labels=options.safety.labels,
        threshold=options.safety.threshold,
        second_look=second_look,
    )


def load_checker(
    folder: Path,
    device: str | torch.device,
    *,
    labels: Sequence[str] = (),
    threshold: float = DEFAULT_THRESHOLD,
    second_look: SecondLook | None = None,
    band: Band | None = None,
) -> "NetworkChecker":
    """Load a checker, in half precision on a CUDA device; `labels` names its unsafe labels.

    Only safetensors are read, no code of the folder is run, and no network is asked. Raises
    `CheckerUnavailableError` for what cannot be loaded, and for weights that are not all there:
    transformers would draw those at random.
    """
    found = read_checker_folder(folder, labels)
    declare_torchvision_operators()
    device = torch.device(device)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    try:
        network, processor = _load(found, dtype)
        network = network.to(device).eval()
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # the weights are read on another stream than this one
    except CheckerUnavailableError:
        raise
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(str(error)) from error
    except Exception as error:
        message = f"{folder}: cannot be loaded: {type(error).__name__}: {error}"
        raise CheckerUnavailableError(message) from error
    scorer: Scorer = (
        ConceptScorer(network)
        if found.architecture == STABLE_DIFFUSION
        else LabelScorer(network, found)
    )
    return NetworkChecker(
        found, scorer, processor, device, dtype, threshold, second_look, band or Band()
    )


class NetworkChecker:
    """An `ImageChecker` over one network; may be asked from several threads, one after another."""

    def __init__(
        self,
        folder: CheckerFolder,
        scorer: Scorer,
        processor: Any,
        device: torch.device,
        dtype: torch.dtype,
        threshold: float,
        second_look: SecondLook | None,
        band: Band,
    ) -> None:
        self._scorer = scorer
        self._processor = processor
        self._device, self._dtype = device, dtype
        self._threshold, self._band = threshold, band
        self._second_look = second_look
        self._lock = threading.Lock()
        # Of its own, so that a check never waits for the steps of the next image.
        self._stream: Any = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.description = f"{folder.description} on {device}"

    def check(self, image: Image.Image, tolerance: int | None = None) -> Verdict:
        """Judge one image, as `ImageChecker.check` says."""
        look = self._second_look
        try:
            threshold = threshold_at(self._threshold, tolerance)
            ask = None if look is None else lambda: look(image)
            return judge(self.score(image), threshold, ask, self._band)
        except (CheckFailedError, OutOfMemoryError, DeviceLostError):
            raise
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(str(error)) from error
        except torch.AcceleratorError as error:
            raise DeviceLostError(str(error)) from error
        except Exception as error:
            message = f"the safety check failed: {type(error).__name__}: {error}"
            raise CheckFailedError(message) from error

    def for_previews(self) -> "NetworkChecker":
        """Return the same checker for pictures that come by the dozen: nobody looks again.

        What somebody would have looked at again counts as unsafe.
        """
        hasty = copy.copy(self)
        if self._second_look is not None:
            hasty._second_look = lambda _image: True  # noqa: SLF001  (of its own class)
        return hasty

    @torch.inference_mode()
    def score(self, image: Image.Image) -> float:
        """Return how sure the network is, from 0 to 1; errors are those of torch."""
        with self._lock, self._on_stream():
            pixels = self._processor(image.convert("RGB"), return_tensors="pt")["pixel_values"]
            return float(self._scorer.score(pixels.to(self._device, self._dtype)))

    def _on_stream(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._stream) if self._stream else nullcontext()


class LabelScorer:
    """The probability that a classifier gives to its unsafe labels, together."""

    def __init__(self, network: Any, folder: CheckerFolder) -> None:
        self._network = network
        self._unsafe = [folder.labels.index(label) for label in folder.unsafe]
        # Where labels do not exclude each other, or there is one alone, they do not add up to 1.
        kind = getattr(network.config, "problem_type", None)
        self._is_alone = len(folder.labels) == 1 or kind == "multi_label_classification"

    def score(self, pixels: torch.Tensor) -> torch.Tensor:
        """Turn (1, 3, H, W) into one number from 0 to 1, in float32."""
        logits: torch.Tensor = self._network(pixel_values=pixels).logits[0].float()
        if self._is_alone:
            return logits.sigmoid()[self._unsafe].max()
        return logits.softmax(dim=-1)[self._unsafe].sum().clamp(max=1)  # keeps NaN


class ConceptScorer:
    """How far an image is beyond the nearest of CompVis' concepts, of which each has its limit.

    It is the class's own arithmetic, whose answer is only yes or no: 0.5 is where it turns.
    """

    def __init__(self, network: Any) -> None:
        self._network = network

    def score(self, pixels: torch.Tensor) -> torch.Tensor:
        """Turn (1, 3, H, W) into one number from 0 to 1, in float32."""
        network = self._network
        embedding = network.visual_projection(network.vision_model(pixels)[1])
        special = _margins(
            embedding, network.special_care_embeds, network.special_care_embeds_weights
        )
        # Round before comparing, as the class does: what is nearer than a digit is no hit.
        care = 0.01 * bool((special.round(decimals=3) > 0).any())
        concepts = _margins(embedding, network.concept_embeds, network.concept_embeds_weights)
        margin = (concepts + care).round(decimals=3).max()
        return ((margin - _MARGIN_STEP) / _MARGIN_SCALE).sigmoid()


def _margins(embedding: torch.Tensor, concepts: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    near = torch.nn.functional.normalize(embedding) @ torch.nn.functional.normalize(concepts).T
    return near[0].float() - limits.float()


def _load(found: CheckerFolder, dtype: torch.dtype) -> tuple[Any, Any]:
    """Load network and preprocessing by the classes that the folder names."""
    import transformers  # noqa: PLC0415  (after torchvision's operators are declared)

    arguments: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if found.architecture == STABLE_DIFFUSION:
        from diffusers.pipelines.stable_diffusion.safety_checker import (  # noqa: PLC0415
            StableDiffusionSafetyChecker,
        )

        network_class: Any = StableDiffusionSafetyChecker
        processor_class: Any = transformers.CLIPImageProcessor
    else:
        network_class = transformers.AutoModelForImageClassification
        processor_class = transformers.AutoImageProcessor
    network, told = network_class.from_pretrained(
        str(found.path), dtype=dtype, use_safetensors=True, output_loading_info=True, **arguments
    )
    gaps = sorted({*told["missing_keys"], *(str(key) for key in told["mismatched_keys"])})
    if gaps:
        shown = ", ".join(gaps[:5]) + ", ..." * (len(gaps) > 5)
        raise CheckerUnavailableError(f"{found.path}: weights are missing or do not fit: {shown}")
    return network, processor_class.from_pretrained(str(found.path), **arguments)
