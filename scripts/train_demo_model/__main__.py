"""Trains the demonstration checkpoint from nothing, or trains the shipped one further."""

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import safetensors.torch
import torch
import transformers

from pipelines.tools.model_parts import build_processor
from pipelines.types import TURBO_LORA_PATH
from scripts.train_demo_model.addressing import begin_addressed
from scripts.train_demo_model.classifier import FOLDER_NAME as CLASSIFIER
from scripts.train_demo_model.classifier import train_classifier
from scripts.train_demo_model.conditions import Encoder
from scripts.train_demo_model.export import write_checkpoint
from scripts.train_demo_model.flash import train_flash
from scripts.train_demo_model.recipe import RECIPES, Recipe
from scripts.train_demo_model.text_encoder import (
    CLOSING,
    sample_texts,
    train_text_encoder,
)
from scripts.train_demo_model.transformer import (
    FlowStage,
    build_transformer,
    train_flow,
)
from scripts.train_demo_model.vae import refine_decoder, train_vae

_TOKENIZER_TEXTS = 4000
_VOCABULARY = 1280


class Training:
    """The stages in their order; each leaves its result in a folder and is not run again."""

    def __init__(self, work: Path, recipe: Recipe, device: torch.device, seed: int) -> None:
        self._work, self._recipe, self._device, self._seed = work, recipe, device, seed

    def begin_from(self, checkpoint: Path) -> None:
        """Take what there is of a checkpoint, all but the LoRA.

        The transformer trains on, or is begun if there is none; the others stay as they are. What
        the work folder already has is left alone. Raises `FileNotFoundError` for a folder that has
        no part of a checkpoint.
        """
        parts = ("text_encoder", "tokenizer", "vae", "transformer", CLASSIFIER)
        there = [part for part in parts if (checkpoint / part).is_dir()]
        if not there:
            raise FileNotFoundError(f"no part of a checkpoint in {checkpoint}")
        for part in there:
            if not (self._work / part).exists():
                shutil.copytree(checkpoint / part, self._work / part)

    def run(self) -> Path:
        """Run what has not been run; returns the folder of the finished checkpoint."""
        processor = self._make_processor()
        text_encoder = self._train_text_encoder(processor)
        vae = self._train_vae()
        encoder = Encoder(text_encoder, processor, vae, self._device)
        transformer = self._train_transformer(encoder)
        lora = self._train_flash(transformer, encoder)
        checkpoint = self._work / "checkpoint"
        if checkpoint.exists():
            return checkpoint
        write_checkpoint(
            checkpoint,
            transformer=transformer,
            vae=vae,
            text_encoder=text_encoder,
            processor=processor,
            lora=lora,
            classifier_folder=self._train_classifier(),
        )
        return checkpoint

    def _make_processor(self) -> Any:
        folder = self._work / "tokenizer"
        if not folder.exists():
            texts = sample_texts(_TOKENIZER_TEXTS, self._seed)
            processor = build_processor(texts, _VOCABULARY, CLOSING)
            processor.save_pretrained(folder)
        return transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)

    def _train_text_encoder(self, processor: Any) -> Any:
        def train(folder: Path) -> Any:
            steps = self._recipe.text_steps
            return train_text_encoder(folder, processor, self._device, steps=steps, seed=self._seed)

        return self._result_of("text_encoder", transformers.Mistral3ForConditionalGeneration, train)

    def _train_vae(self) -> Any:
        def train(folder: Path) -> Any:
            steps, further = self._recipe.vae_steps, self._recipe.decoder_steps
            vae = train_vae(folder / "whole", self._device, steps=steps, seed=self._seed)
            return refine_decoder(
                folder / "decoder", vae, self._device, steps=further, seed=self._seed
            )

        return self._result_of("vae", diffusers.AutoencoderKLFlux2, train)

    def _train_transformer(self, encoder: Encoder) -> Any:
        if (self._work / "transformer").exists():
            model = _load(diffusers.Flux2Transformer2DModel, self._work / "transformer")
        else:
            torch.manual_seed(self._seed)
            model = build_transformer()
            begin_addressed(model, encoder, self._seed)
        for number, stage in enumerate(self._recipe.flow, start=1):

            def train(folder: Path, model: Any = model, stage: FlowStage = stage) -> Any:
                return train_flow(
                    folder, model, encoder, self._device, stage=stage, seed=self._seed
                )

            model = self._result_of(f"flow-{number}", diffusers.Flux2Transformer2DModel, train)
        return model

    def _train_flash(self, transformer: Any, encoder: Encoder) -> dict[str, torch.Tensor]:
        path = self._work / TURBO_LORA_PATH
        if not path.exists():
            lora = train_flash(
                self._work / "training" / "flash",
                transformer,
                encoder,
                self._device,
                kinds=self._recipe.flash_kinds,
                steps=self._recipe.flash_steps,
                seed=self._seed,
            )
            path.parent.mkdir(exist_ok=True)
            safetensors.torch.save_file(lora, path)
        return safetensors.torch.load_file(path)

    def _train_classifier(self) -> Path:
        folder = self._work / CLASSIFIER
        if not folder.exists():
            steps = self._recipe.classifier_steps
            state = self._work / "training" / "classifier"
            shutil.copytree(
                train_classifier(state, self._device, steps=steps, seed=self._seed), folder
            )
        return folder

    def _result_of(self, name: str, kind: Any, train: Callable[[Path], Any]) -> Any:
        """Load what a stage left, or run it and keep what it leaves."""
        folder = self._work / name
        if not folder.exists():
            train(self._work / "training" / name).to("cpu").save_pretrained(folder)
        return _load(kind, folder)


def _load(kind: Any, folder: Path) -> Any:
    return kind.from_pretrained(folder, local_files_only=True, dtype=torch.float32)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the demonstration checkpoint; a run that was stopped goes on where it was."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.train_demo_model", description=main.__doc__
    )
    parser.add_argument("work", type=Path, help="folder for everything; the result is checkpoint/")
    parser.add_argument("--recipe", choices=RECIPES, default="cpu", help="how long to train")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--from", dest="start", type=Path, metavar="CHECKPOINT", help="train this one further"
    )
    options = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    device = torch.device(options.device)
    options.work.mkdir(parents=True, exist_ok=True)
    training = Training(options.work, RECIPES[options.recipe], device, options.seed)
    if options.start:
        training.begin_from(options.start)
    print(f"the checkpoint is in {training.run()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
