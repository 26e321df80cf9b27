"""The operator's rules of safety: which checker is active, whose images must pass, which prompts.

The looking itself is done by the runner; nothing here imports torch.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import structlog

from pipelines.checker_folder import FOLDER_NAME, CheckerFolder, read_checker_folder
from pipelines.errors import CheckerUnavailableError
from pipelines.types import SafetyOptions
from server.denylist import DenyList, read_deny_list
from server.errors import ConfigurationError, InputError, RequestError, content_error
from server.family.endpoint import Order
from server.keyfile import SafetyRule
from server.keys import Caller
from server.settings import Settings

log = structlog.get_logger(__name__)

REFUSED = (
    "The content could not be processed because it contained material flagged by a content checker."
)
"""fal's own words."""


def checker_folder(settings: Settings) -> Path:
    """Return where the checker is wanted: the folder that is set, else one in the model folder."""
    return settings.safety_model or settings.model / FOLDER_NAME


def find_checker(settings: Settings) -> CheckerFolder | None:
    """Return the checker that images have to pass, or None where the operator wants none.

    Raises `ConfigurationError`, which names the folder, when it is not there or not whole: neither
    `required` nor `optional` may go on without one, for both promise that an image can be checked.
    """
    if settings.safety == "off":
        return None
    folder = checker_folder(settings)
    try:
        return read_checker_folder(folder, settings.safety_labels)
    except CheckerUnavailableError as error:
        raise ConfigurationError(
            f"FLUX2_SAFETY is {settings.safety!r}, and the safety checker is wanted in {folder}, "
            f"but:\n{error}\n"
            "Put the files of an image classifier there (Falconsai/nsfw_image_detection on Hugging "
            "Face, for one), name another folder with FLUX2_SAFETY_MODEL or its labels with "
            "FLUX2_SAFETY_LABELS, or set FLUX2_SAFETY=off to serve unchecked images on your own "
            "responsibility."
        ) from None


def safety_options(settings: Settings) -> SafetyOptions | None:
    """Return what a runner must know of the check, or None where nothing is checked."""
    if settings.safety == "off":
        return None
    return SafetyOptions(
        folder=checker_folder(settings),
        labels=settings.safety_labels,
        threshold=settings.safety_threshold,
        check_references=settings.safety_references,
        quarantine=settings.safety_quarantine,
    )


def describe_safety(settings: Settings, checker: CheckerFolder | None) -> str:
    """Say in a line, for the start, who looks at images and whether callers can do without."""
    if checker is None:
        return "off; images are served unchecked, has_nsfw_concepts is always false"
    return f"{settings.safety}; images are checked by {checker.description}"


def must_check(server: SafetyRule, own: SafetyRule | None, *, asked: bool) -> bool:
    """Say whether a request's images must pass: by its key's rule, else by the server's.

    `asked` is the request's `enable_safety_checker`, which counts where the rule is `optional`.
    """
    rule = own or server
    return rule == "required" or (rule == "optional" and asked)


class SafetyRules:
    """What holds for one server: applied to each order before it runs."""

    def __init__(
        self, server: SafetyRule, deny: DenyList, find_caller: Callable[[str], Caller | None]
    ) -> None:
        self._server = server
        self._deny = deny
        self._find_caller = find_caller

    @classmethod
    def of(cls, settings: Settings, find_caller: Callable[[str], Caller | None]) -> "SafetyRules":
        """Make the rules of these settings; `find_caller` tells whose a key is, by its id.

        Raises `ConfigurationError` for a deny list that cannot be used.
        """
        return cls(settings.safety, read_deny_list(settings.prompt_deny), find_caller)

    @property
    def reads_prompts(self) -> bool:
        """Say whether prompts are compared with anything, which takes time."""
        return bool(self._deny)

    def refuse_prompt(self, prompt: str) -> None:
        """Raise `InputError`, fal's content_policy_violation, for a prompt of the deny list.

        Callers are not told by which entry; the log has its line, and no prompt.
        """
        line = self._deny.find(prompt)
        if line is not None:
            log.info("prompt refused", deny_list_line=line)
            raise refused_prompt(prompt)

    def decide(self, order: Order, owner: str) -> Order:
        """Return the order with `check_safety` as it holds, whatever its caller asked for.

        A key that is gone has no rule of its own any more, and nobody to vouch for it: its images
        are checked wherever there is a checker. Raises `RequestError` 503 where a key's images
        must be checked and no checker is loaded.
        """
        caller = self._find_caller(owner)
        own = caller.limits.safety if caller else None
        if caller is None and self._server != "off":
            own = "required"
        is_due = must_check(self._server, own, asked=order.settings.check_safety)
        if is_due and self._server == "off":
            raise RequestError(
                503,
                "The images of this key must be checked, and this server has no safety checker",
                "runner_server_error",
            )
        return replace(order, settings=replace(order.settings, check_safety=is_due))


def refused_prompt(prompt: str) -> InputError:
    """Make the answer for a prompt that the operator does not want."""
    return content_error("content_policy_violation", REFUSED, loc=("prompt",), value=prompt)


def refused_reference(index: int, url: str) -> InputError:
    """Make the answer for a reference image that the checker flags."""
    return content_error("content_policy_violation", REFUSED, loc=("image_urls", index), value=url)
