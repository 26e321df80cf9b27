"""How much, how many and how long: those settings that are numbers, units in their names."""

from pydantic import BaseModel, Field

MIB = 1024 * 1024


class Limits(BaseModel):
    """Part of `server.settings.Settings`."""

    body_limit_bytes: int = Field(64 * MIB, gt=0, description="Largest request body.")
    reference_limit_bytes: int = Field(
        10 * MIB, gt=0, description="Largest reference image in a data URI, decoded."
    )
    reference_limit_pixels: int = Field(
        25_000_000, gt=0, description="Most pixels of one reference image."
    )
    decode_seconds: float = Field(
        10, gt=0, description="How long decoding one reference image may take."
    )
    decode_memory_bytes: int = Field(
        2048 * MIB, gt=0, description="Most address space of the process that decodes them."
    )
    fetch_limit_bytes: int = Field(
        50 * MIB, gt=0, description="Largest reference image behind a URL."
    )
    fetch_seconds: float = Field(20, gt=0, description="How long fetching one of them may take.")
    lora_limit_bytes: int = Field(2048 * MIB, gt=0, description="Largest LoRA.")
    lora_seconds: float = Field(
        600, gt=0, description="How long fetching a LoRA by its URL may take."
    )
    lora_disk_bytes: int = Field(
        20 * 1024 * MIB,
        ge=0,
        description="Most disk for LoRAs that were fetched, between requests.",
    )
    upload_limit_bytes: int = Field(
        100 * MIB, gt=0, description="Largest file uploaded in one request."
    )
    multipart_limit_bytes: int = Field(
        512 * MIB, gt=0, description="Largest file uploaded in parts."
    )
    upload_seconds: float = Field(
        7 * 24 * 3600, gt=0, description="How long uploads are kept unless their sender says."
    )
    upload_quota_bytes: int = Field(
        20 * 1024 * MIB, gt=0, description="Most that all uploads together may take."
    )
    result_seconds: float = Field(
        7 * 24 * 3600, gt=0, description="How long results and their files are kept."
    )
    sync_result_seconds: float = Field(
        360, gt=0, description="How long the result of a `sync_mode` request is kept."
    )
    sweep_seconds: float = Field(10, gt=0, description="Time between sweeps for expired results.")
    drain_seconds: float = Field(
        30, ge=0, description="How long a stop waits for the image that is being made."
    )
    queue_limit: int = Field(
        1000, gt=0, description="Most requests that may wait; more are answered 429."
    )
    disk_reserve_bytes: int = Field(
        1024 * MIB, ge=0, description="Free disk below which new requests are refused."
    )
    header_seconds: float = Field(
        10, gt=0, description="How long a connection may take to send a request's head."
    )
    body_seconds: float = Field(
        30, gt=0, description="How long a connection may take for each 64 KiB of a request's body."
    )
    connections_per_address: int = Field(
        1000, gt=0, description="Most connections that one address may hold open."
    )
    sockets_per_key: int = Field(
        100, gt=0, description="Most websockets that one key, or all callers without one, may hold."
    )
    socket_idle_seconds: float = Field(
        300, gt=0, description="How long a websocket may send nothing while no answer is due."
    )
    load_seconds: float = Field(
        1800, gt=0, description="How long loading the model may make no progress."
    )
    step_seconds: float = Field(
        60, gt=0, description="Longest denoising step; ten times the usual one if that is more."
    )
    stage_seconds: float = Field(
        300,
        gt=0,
        description="How long encoding the prompt, decoding an image, or waiting for its file may "
        "take.",
    )
