"""One denoising step of `Flux2Transformer2DModel`, taken apart so that nothing is done twice.

The layers are diffusers' own and are called in the order and on the shapes of its `forward`, so
that the result is the same bit for bit. What does not change from step to step (text and reference
tokens behind their embedders, rotary tables) is made once for a request.

Shapes: S image tokens, R reference tokens, K text tokens, D the transformer's width, C = 128.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Context:
    """What the steps of a request have in common."""

    text: torch.Tensor  # (1, K, D)
    references: torch.Tensor | None  # (1, R, D)
    rotary: tuple[torch.Tensor, torch.Tensor]  # cosines and sines, (K + S + R, head width)
    guidance: torch.Tensor  # (1,)


class Denoiser:
    """A transformer, step by step. Holds no state between calls."""

    def __init__(self, transformer: Any) -> None:
        self.transformer = transformer

    @property
    def dtype(self) -> torch.dtype:
        """What the layers compute in, whatever the weights of the blocks are stored as."""
        dtype: torch.dtype = self.transformer.x_embedder.weight.dtype
        return dtype

    def prepare(
        self,
        prompt_embeds: torch.Tensor,
        text_ids: torch.Tensor,
        image_ids: torch.Tensor,
        references: torch.Tensor | None,
        guidance_scale: float,
    ) -> Context:
        """Make what the steps have in common.

        Takes the prompt (1, K, 3 * text width) with positions (1, K, 4), the reference tokens
        (1, R, C), and the positions (1, S + R, 4) of picture and references.
        """
        model = self.transformer
        text, image = model.pos_embed(text_ids[0]), model.pos_embed(image_ids[0])
        return Context(
            text=model.context_embedder(prompt_embeds),
            references=None if references is None else self.embed(references),
            rotary=(torch.cat([text[0], image[0]], dim=0), torch.cat([text[1], image[1]], dim=0)),
            # Rounded to the layers' type before it is multiplied, as `forward` does.
            guidance=torch.full(
                [1], guidance_scale, device=prompt_embeds.device, dtype=torch.float32
            ).to(self.dtype)
            * 1000,
        )

    def with_prompt(self, context: Context, prompt_embeds: torch.Tensor) -> Context:
        """Make the same for another prompt of as many tokens; references are shared."""
        return replace(context, text=self.transformer.context_embedder(prompt_embeds))

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embed tokens (1, N, C) as (1, N, D)."""
        embedded: torch.Tensor = self.transformer.x_embedder(tokens.to(self.dtype))
        return embedded

    def embed_level(self, timestep: torch.Tensor, context: Context) -> torch.Tensor:
        """Embed noise level and guidance, (1, D). `timestep` (1,) is the level times 1000."""
        level = timestep.to(self.dtype) / 1000
        embedded: torch.Tensor = self.transformer.time_guidance_embed(
            level * 1000, context.guidance
        )
        return embedded

    def run_blocks(
        self, image: torch.Tensor, level: torch.Tensor, context: Context
    ) -> torch.Tensor:
        """Run all blocks on embedded image tokens (1, S, D); returns (1, S + R, D)."""
        model = self.transformer
        for_image, for_text, for_all = (
            modulation(level)
            for modulation in (
                model.double_stream_modulation_img,
                model.double_stream_modulation_txt,
                model.single_stream_modulation,
            )
        )
        hidden, text = self._with_references(image, context), context.text
        for block in model.transformer_blocks:
            text, hidden = block(
                hidden_states=hidden,
                encoder_hidden_states=text,
                temb_mod_img=for_image,
                temb_mod_txt=for_text,
                image_rotary_emb=context.rotary,
            )
        hidden = torch.cat([text, hidden], dim=1)
        for block in model.single_transformer_blocks:
            hidden = block(
                hidden_states=hidden,
                encoder_hidden_states=None,
                temb_mod=for_all,
                image_rotary_emb=context.rotary,
            )
        return hidden[:, text.shape[1] :]

    def project(self, hidden: torch.Tensor, level: torch.Tensor, tokens: int) -> torch.Tensor:
        """Turn the blocks' output into the velocity (1, tokens, C) of the first `tokens`.

        All rows are projected although only some are wanted: a matrix product of another height
        may round differently, and these rows cost nothing beside the blocks.
        """
        velocity: torch.Tensor = self.transformer.proj_out(self.transformer.norm_out(hidden, level))
        return velocity[:, :tokens]

    @staticmethod
    def _with_references(image: torch.Tensor, context: Context) -> torch.Tensor:
        if context.references is None:
            return image
        return torch.cat([image, context.references], dim=1)


class Residuals:
    """What the blocks added to the image tokens in the last computed steps, and will add next.

    Over the noise level that changes slowly, so that a line through the last two tells the next
    (TaylorSeer's order 1, https://arxiv.org/abs/2503.06923, but over sigma, whose steps are not
    equal). Lives for one image.
    """

    def __init__(self) -> None:
        self._known: Sequence[tuple[float, torch.Tensor]] = ()

    def note(self, sigma: float, added: torch.Tensor) -> None:
        """Remember what was added at a computed step (1, S, D)."""
        self._known = (*self._known[-1:], (sigma, added))

    def at(self, sigma: float) -> torch.Tensor:
        """Extrapolate to another level; at least one step must have been computed."""
        *before, (last_sigma, last) = self._known
        if not before:
            return last
        ((first_sigma, first),) = before
        return torch.lerp(first, last, (sigma - first_sigma) / (last_sigma - first_sigma))


class Pass:
    """One prompt's way through the transformer, for all steps of one image of S tokens.

    Where `has_gaps` some steps are not computed: then what the blocks added is kept.
    """

    def __init__(
        self, denoiser: Denoiser, context: Context, image_tokens: int, *, has_gaps: bool
    ) -> None:
        self._denoiser = denoiser
        self._context = context
        self._image_tokens = image_tokens
        self._residuals = Residuals() if has_gaps else None

    def velocity(
        self, embedded: torch.Tensor, level: torch.Tensor, sigma: float, *, computed: bool
    ) -> torch.Tensor:
        """Return where the prompt leads to at one step, (1, S, C).

        `embedded` (1, S, D) and `level` (1, D) are the same for all passes of a step. The first
        step must be computed.
        """
        if self._residuals and not computed:
            hidden = embedded + self._residuals.at(sigma)
        else:
            hidden = self._denoiser.run_blocks(embedded, level, self._context)
            if self._residuals:
                self._residuals.note(sigma, hidden[:, : self._image_tokens] - embedded)
        return self._denoiser.project(hidden, level, self._image_tokens)


def lead(velocities: Sequence[torch.Tensor], guidance_scale: float) -> torch.Tensor:
    """Join the velocities of a step's passes: the prompt's, and perhaps a negative prompt's.

    With the second one it is true guidance, as `Flux2KleinPipeline` has it
    (https://arxiv.org/abs/2207.12598).
    """
    towards, *away = velocities
    if not away:
        return towards
    return away[0] + guidance_scale * (towards - away[0])
