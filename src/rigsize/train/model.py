"""The model that is trained: loaded from safetensors, or of random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from rigsize.errors import MeasurementFailed, SpecError, UnsupportedCombination
from rigsize.models import ModelSource, tasks_of
from rigsize.run.job import options_of
from rigsize.spec import Strategy, Workload
from rigsize.trace.capture import quiet_transformers
from rigsize.trace.model import (
    AUTO_CLASSES,
    BuildOptions,
    attention_interface,
    build_base,
    load_config,
    prepare,
)

__all__ = ["ModelMaker", "reads_last"]


def reads_last(source: ModelSource) -> bool:
    """Whether a classification head reads a text's last token: decoders', whose others see less."""
    tasks = tasks_of(source.model_type)
    return "causal-lm" in tasks and "masked-lm" not in tasks


@dataclass(slots=True, kw_only=True)
class ModelMaker:
    """Makes the run's model on any device; the same weights at every call."""

    source: ModelSource
    workload: Workload
    strategy: Strategy
    init: str
    seed: int
    label_names: tuple[str, ...] = ()

    @property
    def options(self) -> BuildOptions:
        """As the trace takes them."""
        return options_of(self.workload, self.strategy)

    def config(self) -> Any:
        """Transformers' config, with the labels' names."""
        config = load_config(self.source.config, self.options)
        if self.label_names:
            config.id2label = dict(enumerate(self.label_names))
            config.label2id = {name: i for i, name in enumerate(self.label_names)}
        return config

    def __call__(self, device: str) -> torch.nn.Module:
        """The model on `cpu` or `meta`, adapted, in training mode.

        Raises SpecError where there are no weights to load and `init` asks for them.
        """
        torch.manual_seed(self.seed)
        config = self.config()
        with quiet_transformers():
            if self.init == "random" or device == "meta":
                model = build_base(config, self.options, device)
            else:
                model = self._pretrained(config)
            model = model.to(self._dtype())
            # Adapters are born random: with the same seed whatever the base took from it.
            torch.manual_seed(self.seed + 1)
            return prepare(model, self.options)

    def check(self) -> None:
        """Refuses what has no weights to begin from, before anything is loaded."""
        if self.init == "random":
            return
        if self.source.origin == "config":
            raise SpecError(
                "init",
                "pretrained",
                f"{self.source.name} is a config.json without weights",
                allowed=("random",),
                hint="give the folder that holds its model.safetensors, or --init random",
            )
        if self.source.origin == "folder" and not self._has_weights():
            raise SpecError(
                "model",
                str(self.source.path),
                "no .safetensors weights in this folder; other formats can run code",
                hint="--init random trains from scratch",
            )

    def _has_weights(self) -> bool:
        from pathlib import Path

        return any(Path(self.source.path or ".").glob("*.safetensors"))

    def _dtype(self) -> torch.dtype:
        policy = self.strategy.policy
        if policy.compute != "half":
            return torch.float32
        dtype: torch.dtype = getattr(torch, policy.half_dtype)
        return dtype

    def _pretrained(self, config: Any) -> torch.nn.Module:
        import transformers

        auto = getattr(transformers, AUTO_CLASSES[self.workload.task])
        local = self.source.origin == "folder"
        place = self.source.path if local else self.source.name
        try:
            model: torch.nn.Module = auto.from_pretrained(
                place,
                config=config,
                attn_implementation=attention_interface(config, self.options),
                dtype=self._dtype(),
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=local,
            )
        except UnsupportedCombination:
            raise
        except Exception as error:  # whatever the library raises becomes one line
            text = " ".join(str(error).split())[:200] or type(error).__name__
            raise MeasurementFailed(
                "model",
                self.source.name,
                f"its weights cannot be loaded ({text})",
                hint="a folder with safetensors weights, or --init random",
            ) from error
        return model
