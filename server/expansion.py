"""Prompt expansion by a language model that the operator runs elsewhere (`FLUX2_EXPANSION_URL`).

It is asked by the gateway, before a request goes to a runner, so that no device waits for it. What
it is told, and what becomes of its answer, is as with the model's own text encoder: see
`pipelines.expansion`. The protocol is chat completions as OpenAI's API has them, which vLLM,
llama.cpp, Ollama and others speak: https://platform.openai.com/docs/api-reference/chat.
"""

import asyncio
import base64
import contextlib
import io
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import httpx2
import structlog
from pydantic import BaseModel, Field, ValidationError

from pipelines.expansion import Expansion, ExpansionCache, Reason, keep, key_of, why_not
from pipelines.instructions import (
    MAX_NEW_TOKENS,
    PICTURE_AREA_PIXELS,
    TEMPERATURE,
    task_for,
    tidy,
)
from pipelines.pictures import side_by_side
from server.errors import ConfigurationError
from server.outbound import Answer, Outbound, OutboundError, read_url, trusted_authorities
from server.settings import Settings
from server.targets import NameServer, RefusedTargetError

log = structlog.get_logger(__name__)

PATH = "/chat/completions"
CONNECT_SECONDS = 3.0
ANSWER_BYTES = 256 * 1024
"""Largest answer that is read: the text has a few kilobytes, its envelope not many more."""

JPEG_QUALITY = 90
SEED_BITS = 0x7FFF_FFFF
"""What every server takes for a seed; that two of ours may become the same one does no harm."""


class _Message(BaseModel):
    content: str


class _Choice(BaseModel):
    message: _Message


class _Completion(BaseModel):
    """What is read of an answer."""

    choices: Annotated[list[_Choice], Field(min_length=1)]


class RemoteExpander:
    """Expands prompts through `outbound` at one URL, each within `seconds`.

    Nothing is ever sent anywhere else: redirects are failures.
    """

    def __init__(
        self,
        outbound: Outbound,
        url: httpx2.URL,
        seconds: float,
        *,
        model: str | None = None,
        key: str | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> None:
        self._outbound = outbound
        self._url = url
        self._seconds = seconds
        self._max_new_tokens = max_new_tokens
        self._model = {"model": model} if model else {}
        self._headers = {
            "content-type": "application/json",
            "accept": "application/json",
            "user-agent": "flux2-serve",
            **({"authorization": f"Bearer {key}"} if key else {}),
        }
        self._cache = ExpansionCache()

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """Make the expander that the settings ask for, or None without a URL.

        It may be at any address, for the operator chose it and no caller can change it. Raises
        `ConfigurationError` for settings that mean nothing.
        """
        key = settings.expansion_key.get_secret_value() if settings.expansion_key else None
        if settings.expansion_url is None:
            if key or settings.expansion_model:
                raise ConfigurationError(
                    "FLUX2_EXPANSION_MODEL and FLUX2_EXPANSION_KEY need FLUX2_EXPANSION_URL"
                )
            return None
        return cls(
            Outbound(_anywhere, trusted_authorities(settings.outbound_ca_file)),
            completions_url(settings.expansion_url),
            settings.expansion_seconds,
            model=settings.expansion_model,
            key=key,
            max_new_tokens=settings.expansion_tokens,
        )

    async def expand(
        self, prompt: str, references: Sequence[Path] = (), *, seed: int, request_id: str = ""
    ) -> Expansion:
        """Return the prompt to use: after any failure the caller's own, and the log says why.

        `references` are the decoded ones. Raises nothing.
        """
        reason = why_not(prompt)
        if reason:
            return keep(prompt, reason, request_id)
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._seconds):
                key = await asyncio.to_thread(key_of, prompt, references, seed)
                text = self._cache.get(key)
                remembered = text is not None
                if text is None:
                    text = await self._ask(prompt, references, seed)
        except TimeoutError:
            why = f"no answer in {self._seconds:g} seconds"
            return keep(prompt, Reason.FAILED, request_id, why)
        except OutboundError as error:
            return keep(prompt, Reason.FAILED, request_id, str(error))
        except Exception as error:  # noqa: BLE001  (the image matters more than a better prompt)
            return keep(prompt, Reason.FAILED, request_id, type(error).__name__)
        if not text:
            return keep(prompt, Reason.EMPTY, request_id)
        self._cache.put(key, text)
        log.info(
            "prompt expanded",
            request_id=request_id,
            characters=len(text),
            remembered=remembered,
            seconds=round(time.monotonic() - started, 3),
        )
        return Expansion(text, Reason.EXPANDED)

    async def close(self) -> None:
        """Let go of the connections."""
        await self._outbound.close()

    async def _ask(self, prompt: str, references: Sequence[Path], seed: int) -> str:
        content: str | list[dict[str, Any]] = prompt
        if references:
            picture = await asyncio.to_thread(_data_uri, references)
            content = [
                {"type": "image_url", "image_url": {"url": picture}},
                {"type": "text", "text": prompt},
            ]
        question = {
            **self._model,
            "messages": [
                {"role": "system", "content": task_for(has_references=bool(references))},
                {"role": "user", "content": content},
            ],
            "temperature": TEMPERATURE,
            "max_tokens": self._max_new_tokens,
            "seed": seed & SEED_BITS,
            "stream": False,
        }
        return tidy(_text_in(await self._post(question)))

    async def _post(self, question: Mapping[str, Any]) -> bytes:
        async with self._outbound.request(
            "POST",
            self._url,
            self._headers,
            json.dumps(question).encode(),
            connect_seconds=CONNECT_SECONDS,
            silence_seconds=self._seconds,
        ) as answer:
            if answer.status != 200:
                raise OutboundError(f"answered {answer.status}")
            return await _read(answer)


def completions_url(text: str) -> httpx2.URL:
    """Read the setting: the API's base, such as http://10.0.0.5:8000/v1, or the whole URL.

    Raises `ConfigurationError`.
    """
    try:
        url = read_url(text)
    except RefusedTargetError as error:
        raise ConfigurationError(f"FLUX2_EXPANSION_URL: {error}") from error
    path = url.path.rstrip("/")
    return url if path.endswith(PATH) else url.copy_with(path=path + PATH)


async def _anywhere(host: str, _port: int) -> list[str]:
    return [str(address) for address in await NameServer().look_up(host)]


async def _read(answer: Answer) -> bytes:
    body = bytearray()
    async with contextlib.aclosing(answer.chunks()) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > ANSWER_BYTES:
                raise OutboundError("the answer is too long")
    return bytes(body)


def _text_in(body: bytes) -> str:
    try:
        return _Completion.model_validate_json(body).choices[0].message.content
    except ValidationError:
        pass  # it quotes the answer, which is nothing for the log
    raise OutboundError("the answer is no chat completion")


def _data_uri(references: Sequence[Path]) -> str:
    """Show all pictures in one, as the model's own text encoder sees them."""
    buffer = io.BytesIO()
    side_by_side(references, PICTURE_AREA_PIXELS).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
