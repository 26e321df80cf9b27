"""What can go wrong in a pipeline, named by what the caller must do about it."""


class PipelineError(Exception):
    """The root of everything a pipeline raises on purpose."""


class CancelledError(PipelineError):
    """The caller asked to stop; raised at a step boundary, and no image comes."""


class OutOfMemoryError(PipelineError):
    """The device had too little memory for this request; the next one may fit."""


class DeviceLostError(PipelineError):
    """The device answers nothing more in this process: end it and start a new one."""


class ModelNotFoundError(PipelineError):
    """The model folder cannot be loaded; the message names every missing piece."""


class FlashUnavailableError(PipelineError):
    """A flash request, but no flash LoRA is loaded; the message names the file that is wanted."""


class LoraError(PipelineError):
    """A LoRA file cannot be used; the message names the file and what is wrong with it."""


class LoraRefusedError(PipelineError):
    """A LoRA that a request brings does not fit: number `index` of the request, from 0.

    The message says what is wrong with it, without naming a path: it is told to the caller.
    """

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index = index


class DoesNotFitError(PipelineError):
    """The model does not fit on the device; the message says what is missing, and where."""


class CheckerUnavailableError(PipelineError):
    """The safety checker cannot be loaded; the message has a line for each thing that is wrong."""


class CheckFailedError(PipelineError):
    """An image could not be judged, so it must not leave; the request fails."""


class ReferenceRefusedError(PipelineError):
    """The safety checker flags a reference image: number `index` of the request, from 0."""

    def __init__(self, index: int) -> None:
        super().__init__(f"reference image {index} is flagged")
        self.index = index


class LanguageError(PipelineError):
    """The text encoder cannot write or answer; the message says what is missing or wrong."""


class CriteriaError(PipelineError):
    """The file of criteria for prompts cannot be used; the message names the file and line."""


class PromptRefusedError(PipelineError):
    """The prompt meets one of the operator's criteria; the message, for the log, says which."""
