"""Generation with a cache, traced and for real, side by side."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from tests.program.tiny_profile import CPU
from tests.trace.referee import Verdict, compare, live_bytes, profile_once, profiler_events
from tests.trace.tiny import CONFIGS

from rigsize.memory.replay import replay_exact
from rigsize.program.generation import build_generation
from rigsize.run.generation import Generation
from rigsize.run.step import StepRecipe
from rigsize.spec import Strategy
from rigsize.spec.adapter import Adapter
from rigsize.trace.capture import Traced
from rigsize.trace.model import BuildOptions, build, load_config
from rigsize.trace.profile import Profile, TraceKey
from rigsize.trace.session import Session

PROMPT = 40
SEQ2SEQ = ("t5", "mt5", "bart", "m2m_100")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A tiny model that writes tokens."""

    family: str
    compute: str = "fp32"
    padded: bool = False
    attention: str = "sdpa"
    adapter: Adapter | None = None

    def __str__(self) -> str:
        padding = "padded" if self.padded else "whole"
        adapter = f"-{self.adapter.text()}" if self.adapter else ""
        return f"{self.family}-{self.compute}-{self.attention}-{padding}{adapter}"

    @property
    def encodes(self) -> bool:
        """Whether an encoder reads the prompt."""
        return self.family in SEQ2SEQ

    @property
    def options(self) -> BuildOptions:
        """What is built."""
        return BuildOptions(
            task="seq2seq-lm" if self.encodes else "causal-lm",
            compute=self.compute,
            attention=self.attention,
            training=False,
            generates=True,
            adapter=self.adapter,
        )

    @property
    def recipe(self) -> StepRecipe:
        """Of a real CPU run."""
        autocast = torch.bfloat16 if self.compute == "amp" else None
        return StepRecipe(task=self.options.task, device_type="cpu", autocast_dtype=autocast)

    def model(self) -> torch.nn.Module:
        """With random weights, the same each time."""
        torch.manual_seed(0)
        model = build(load_config(CONFIGS[self.family], self.options), self.options, "cpu")
        module: Any
        for module in model.modules():  # it looks at ids to warn of padding: no part of a step
            if hasattr(module, "warn_if_padding_and_no_attention_mask"):
                module.warn_if_padding_and_no_attention_mask = lambda *_: None
        return model

    def batch(self, texts: int = 2, length: int = PROMPT) -> dict[str, Any]:
        """Two prompts; padding stands on the left, as decoders want it."""
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(4, 1000, (texts, length), generator=generator)
        if not self.padded:
            return {"input_ids": ids}
        mask = torch.ones_like(ids)
        mask[0, :3] = 0
        return {"input_ids": ids, "attention_mask": mask}


def nothing(_phase: str) -> None:
    """No one listens for phases."""


def verdict(case: Case, cache: str) -> Verdict:
    """The trace of a prefill or a decoding step beside the profiler's tree of the same."""
    decodes = cache == "decode"
    target = 18 if case.encodes and decodes else 1
    keys = (target if case.encodes else PROMPT) + 2
    sizes = {"B": 2, "S": PROMPT, "C": keys}
    options = case.options
    model = Traced(load_config(CONFIGS[case.family], options), options, "cpu")
    trace = model.record_generation(sizes, cache, padded=case.padded)

    def started() -> Generation:
        return Generation(real, case.batch(), case.recipe, target_length=target)

    real = case.model()
    warm_up = started()  # what a first call of some operators makes for good
    warm_up.prefill(nothing)
    warm_up.decode(nothing)
    generation = started()
    if decodes:
        generation.prefill(nothing)
        generation.decode(nothing)
        tree = profile_once(lambda: generation.decode(nothing))
    else:
        tree = profile_once(lambda: generation.prefill(nothing))
    return compare(trace, tree, folds=case.adapter is None)


def generated_peak(case: Case, new_tokens: int, length: int = PROMPT) -> int:
    """Live bytes at the peak of one real `generate` on the CPU, beyond the model and its prompt."""
    model: Any = case.model()
    # A text that may end early, and BART's forced last token, each make another copy of the scores.
    model.generation_config.eos_token_id = model.generation_config.forced_eos_token_id = None
    batch = case.batch(length=length)

    def run() -> None:
        model.generate(**batch, max_new_tokens=new_tokens, do_sample=False)

    run()
    return live_bytes(profiler_events(profile_once(run), frozenset()))[0]


def predicted_peak(case: Case, new_tokens: int, length: int = PROMPT) -> int:
    """The same by the Program, traced at the full depth of the tiny model."""
    key = TraceKey(
        config_digest="tiny",
        task=case.options.task,
        use="inference",
        compute=case.compute,
        attention=case.attention,
        padded=case.padded,
        recompute="none",
        device="cpu",
        num_labels=3,
        hold_output=True,
        cache="prefill",
        adapter=case.adapter.text() if case.adapter else "",
    )
    keys = (1 if case.encodes else length) + new_tokens - 1
    point = {"B": 2, "S": length, "T": 0, "C": keys}
    profile = replace(
        _profile(case, key, point), decode=_profile(case, replace(key, cache="decode"), point)
    )
    program = build_generation(profile, point, Strategy(), CPU)
    loaded = sum(program.timeline.sizes[o] for o in program.slices["load"] if o >= 0)
    return replay_exact(program).allocated_peak_bytes - loaded


def _profile(case: Case, key: TraceKey, point: dict[str, int]) -> Profile:
    config = CONFIGS[case.family]
    session = Session(config, key, config.get("max_position_embeddings"))
    return session.profile(session.domains_of(point))
