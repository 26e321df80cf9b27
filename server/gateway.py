"""The parts behind the routes: each made once, in order, started and stopped together."""

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator

import structlog

from pipelines.types import Model
from server.admission import Admission
from server.attempts import Parts
from server.clock import SteadyClock
from server.decoder import Decoder
from server.delivery import Courier
from server.dispatcher import Dispatcher
from server.errors import ConfigurationError
from server.events import Events
from server.expansion import RemoteExpander
from server.fetch import Fetcher
from server.files import FileStore
from server.inputs import InputPreparer
from server.jobs import Job
from server.keyfile import KeyFile
from server.keys import Keyring
from server.loading import load_options
from server.loras import LoraFinder
from server.marking import marking_of
from server.metrics import Metrics
from server.model_folders import check_kinds
from server.outbound import Outbound, trusted_authorities
from server.placement import read_place
from server.runners.local import Limits, LocalRunner
from server.runners.messages import Load
from server.safety import SafetyRules, find_checker
from server.settings import ENV_PREFIX, Settings
from server.signing import Signer
from server.store import Store
from server.store.outbox import Outbox
from server.targets import AllowList
from server.tickets import Tickets
from server.upkeep import recover, sweep
from server.uploads import Uploads
from server.webhooks import WebhookSender

log = structlog.get_logger(__name__)

KEYS_FOLDER = "keys"
"""Of the data folder: the keys of callers, and those that webhooks are signed with."""

WEBHOOK_STOP_SECONDS = 1.0
"""How long a stop waits for webhooks under way; the others are sent after the next start."""


class Gateway:
    """All that the routes are made over. Nothing runs until `running` is entered.

    Raises `ConfigurationError` when the settings ask for what cannot be given.
    """

    def __init__(self, settings: Settings) -> None:
        check_settings(settings)
        self.checker = find_checker(settings)
        keys_folder = settings.data_dir / KEYS_FOLDER
        self.settings = settings
        self.keys = make_keyring(settings)
        self.clock = SteadyClock()
        self.store = Store(settings.data_dir)
        self.files = FileStore(settings.data_dir / "files")
        self.events = Events()
        self.metrics = Metrics(self.clock, self.store.backlog)
        self.signer = Signer(keys_folder)
        self.tickets = Tickets(keys_folder, self.clock, self.keys.get, self.keys.house_digest)
        self.uploads = Uploads(settings, self.store, self.files, self.clock)
        self._fetcher = make_fetcher(settings)
        self._lora_fetcher = make_lora_fetcher(settings)
        self._decoder = Decoder(settings)
        self._expander = RemoteExpander.of(settings)
        self._inputs = InputPreparer(
            settings,
            self.files,
            self.store,
            self._fetcher,
            self._decoder,
            LoraFinder(settings, self.files, self.store, self._lora_fetcher),
            SafetyRules.of(settings, self.keys.get),
            self._expander,
        )
        self._webhooks = WebhookSender(
            Outbox(self.store),
            make_courier(settings),
            self.signer,
            self.clock,
            on_attempt=self.metrics.webhook,
        )
        parts = Parts(
            settings=settings,
            store=self.store,
            files=self.files,
            inputs=self._inputs,
            events=self.events,
            metrics=self.metrics,
            clock=self.clock,
            on_completed=self._on_completed,
        )
        runners = [make_runner(settings, name) for name in settings.devices]
        self.dispatcher = Dispatcher(parts, runners)
        self.admission = Admission(settings, self.store, self.clock, self.dispatcher.on_accepted)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Put the data folder in order, work through the queue, and stop in the end."""
        await self.store.open()
        try:
            await recover(self.store, self.files, self._inputs, self.clock)
            await self._start_decoder()
            await self._webhooks.start()
            self.tickets.load()
            self.dispatcher.start(held=self.settings.start_mode == "hold")
            every_seconds = self.settings.sweep_seconds
            sweepers = [
                asyncio.create_task(sweeping, name="sweeper")
                for sweeping in (
                    sweep(self.store, self.files, self.clock, every_seconds),
                    self.uploads.keep_swept(every_seconds),
                )
            ]
            try:
                yield
            finally:
                for sweeper in sweepers:
                    sweeper.cancel()
                await self.drain(0)
                await self._webhooks.stop(WEBHOOK_STOP_SECONDS)
                await self._fetcher.close()
                await self._lora_fetcher.close()
                if self._expander:
                    await self._expander.close()
        finally:
            await self._decoder.stop()
            await self.store.close()

    async def drain(self, seconds: float) -> None:
        """Stop the work, and then the waiting for it; HTTP goes on. May be called again."""
        await self.dispatcher.stop(seconds)
        self.events.close()

    async def _start_decoder(self) -> None:
        """Have it warm for the first picture. Without it everything but edits works, so go on."""
        try:
            await self._decoder.start()
        except OSError as error:
            log.error("the image decoder does not start", reason=str(error))

    def _on_completed(self, job: Job) -> None:
        self.metrics.completed(job)
        if job.webhook_url:
            self._webhooks.wake()
        log.info(
            "completed",
            request_id=job.request_id,
            http_status=job.outcome.http_status if job.outcome else None,
            inference_seconds=job.outcome.inference_seconds if job.outcome else None,
            applied=job.outcome.applied if job.outcome else None,
        )


def make_runner(settings: Settings, device: str) -> LocalRunner:
    """Make the runner for one entry of the devices; it starts when the dispatcher does."""
    place = read_place(device, settings.folders)
    loads = {
        model: Load(
            pipeline_factory=settings.pipeline_factory,
            options=load_options(settings, model, place.device),
            marking=marking_of(settings, settings.folders[model]),
            log_level=settings.log_level,
        )
        for model in place.models
    }
    limits = Limits(
        load_seconds=settings.load_seconds,
        stage_seconds=settings.stage_seconds,
        step_seconds=settings.step_seconds,
    )
    return LocalRunner(loads, limits)


def make_keyring(settings: Settings) -> Keyring:
    """Read the keys that callers may use.

    Raises `ConfigurationError` for a damaged file, and rather than be open to a whole network
    by oversight.
    """
    key = settings.api_key.get_secret_value() if settings.api_key else None
    keys = Keyring(KeyFile(settings.data_dir / KEYS_FOLDER), key)
    if not (is_loopback(settings.host) or keys.has_keys or settings.allow_anonymous):
        raise ConfigurationError(
            f"host is {settings.host!r} and there is no key: whoever reaches this machine could "
            "use it. Make a key with `flux2-serve keys create --name NAME` (or set "
            "FLUX2_API_KEY), or set FLUX2_ALLOW_ANONYMOUS=1 to let everybody in."
        )
    return keys


def make_courier(settings: Settings) -> Courier:
    """Make what carries webhooks to whom the settings allow."""
    return Courier(_make_outbound(settings, "WEBHOOK_ALLOW", settings.webhook_allow))


def make_fetcher(settings: Settings) -> Fetcher:
    """Make what downloads image URLs from where the settings allow."""
    outbound = _make_outbound(settings, "FETCH_ALLOW", settings.fetch_allow)
    return Fetcher(outbound, settings.fetch_limit_bytes, settings.fetch_seconds)


def make_lora_fetcher(settings: Settings) -> Fetcher:
    """Make what downloads LoRAs, from the same places, which takes more room and time."""
    outbound = _make_outbound(settings, "FETCH_ALLOW", settings.fetch_allow)
    return Fetcher(outbound, settings.lora_limit_bytes, settings.lora_seconds)


def _make_outbound(settings: Settings, name: str, entries: tuple[str, ...]) -> Outbound:
    allowed = AllowList.parse(f"{ENV_PREFIX}{name}", entries)
    if entries:
        log.info("private targets are allowed", setting=allowed.setting, entries=entries)
    return Outbound(allowed.resolve, trusted_authorities(settings.outbound_ca_file))


def check_settings(settings: Settings) -> None:
    """Refuse to start on settings that would make the server lie.

    Raises `ConfigurationError`. Whether there is a safety checker is asked by `find_checker`.
    """
    if settings.connect_port is not None and settings.tls_port is None:
        raise ConfigurationError(
            "FLUX2_CONNECT_PORT leads clients to the HTTPS port, but FLUX2_TLS_PORT is none: give "
            "the server an HTTPS port too, or leave the proxy off"
        )
    check_kinds(settings.folders)
    others = [model for model in settings.folders if model is not Model.DEV]
    if settings.prompt_criteria and others:
        raise ConfigurationError(
            f"FLUX2_PROMPT_CRITERIA is judged by the text encoder of dev, which {others[0]} does "
            "not have: its prompts would pass unjudged. Take the model or the criteria away."
        )


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach a server that listens on this address or name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
