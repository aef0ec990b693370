"""One job as a file names it: the command line's own words, parsed into Workload and Strategy.

Suite files and validation cases use it. No torch here.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rigsize.errors import SpecError, nearest
from rigsize.run.job import MeasureOptions
from rigsize.spec import Strategy, Workload
from rigsize.spec.checks import integer
from rigsize.spec.optimizers import OPTIMIZER_ALIASES
from rigsize.texts.stats import LengthHistogram
from rigsize.units import parse_bytes

__all__ = ["LEAST_STEPS", "Spec", "parse_spec", "read_specs", "spec_json"]

LEAST_STEPS = 3
"""Step 1 lacks optimizer states, step 2 is the first whole one, step 3 shows that it repeats."""
MOST_STEPS = 10_000
MOST_SPECS = 100_000
_LARGEST_FILE_BYTES = 16 * 1024**2

_WORKLOAD = {
    "model": "model",
    "task": "task",
    "use": "use",
    "max_length": "max_length",
    "max_target_length": "max_target_length",
    "num_labels": "num_labels",
    "padding": "padding",
    "padding_in_batch": "padding_in_batch",
    "mask_share": "mask_share",
    "examples": "examples",
    "prompt_length": "prompt_length",
    "max_new_tokens": "max_new_tokens",
}
_STRATEGY = {
    "precision": "precision",
    "optim": "optimizer",
    "batch_size": "micro_batch",
    "grad_accum": "accumulation",
    "recompute": "recompute",
    "attention": "attention",
    "hold_output": "hold_output",
    "max_grad_norm": "max_grad_norm",
    "loss": "loss",
    "tokens_per_batch": "tokens_per_batch",
    "parallel": "parallel",
    "offload": "offload",
    "method": "method",
    "lora_rank": "lora_rank",
    "lora_targets": "lora_targets",
    "adapter_dtype": "adapter_dtype",
    "rslora": "rslora",
    "lora_dropout": "lora_dropout",
    "virtual_tokens": "virtual_tokens",
    "quantization": "quantization",
}
_OPTIONS = ("world", "cap", "histogram", "attribution")
_OTHER = ("id", "steps", "seed", "note", *_OPTIONS)
_REQUIRED = ("model", "task", "max_length")
_TEXTS = (
    *("model", "task", "use", "padding", "precision", "optim", "recompute", "attention", "cap"),
    *("loss", "parallel", "offload", "method", "lora_targets", "adapter_dtype"),
    "quantization",
)
_SWITCHES = ("padding_in_batch", "hold_output", "attribution", "rslora")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One job of a file."""

    id: str
    workload: Workload
    strategy: Strategy
    steps: int = LEAST_STEPS
    """Optimizer steps (training) or forward passes."""
    seed: int = 0
    note: str = ""
    options: MeasureOptions = field(default_factory=MeasureOptions)


def parse_spec(entry: Mapping[str, Any], default_id: str = "") -> Spec:
    """The job of one entry; unknown keys and wrong types are refused, naming the entry."""
    name = entry.get("id", default_id)
    if not isinstance(name, str) or not name.strip() or len(name) > 200 or not name.isprintable():
        raise SpecError("id", name, "not a name", allowed=("1 to 200 printable characters",))
    try:
        return _parse(name, entry)
    except SpecError as error:
        # The file may hold hundreds of entries: say which.
        error.field = f"{name}: {error.field}"
        raise


def _parse(name: str, entry: Mapping[str, Any]) -> Spec:
    _check_keys(entry)
    steps, seed = entry.get("steps", LEAST_STEPS), entry.get("seed", 0)
    integer("steps", steps, LEAST_STEPS, MOST_STEPS)
    integer("seed", seed, 0, 2**63 - 1)
    strategy = {_STRATEGY[key]: value for key, value in entry.items() if key in _STRATEGY}
    if "optimizer" in strategy:
        strategy["optimizer"] = OPTIMIZER_ALIASES.get(strategy["optimizer"], strategy["optimizer"])
    if strategy.get("max_grad_norm") == 0:
        strategy["max_grad_norm"] = None  # TOML has no null; 0 means no clipping
    return Spec(
        id=name,
        workload=Workload(**{_WORKLOAD[k]: v for k, v in entry.items() if k in _WORKLOAD}),
        strategy=Strategy(**strategy),
        steps=steps,
        seed=seed,
        note=str(entry.get("note", "")),
        options=_options(entry),
    )


def _options(entry: Mapping[str, Any]) -> MeasureOptions:
    cap, pairs = entry.get("cap"), entry.get("histogram")
    return MeasureOptions(
        world=entry.get("world"),
        cap_bytes=None if cap is None else parse_bytes(cap, "cap"),
        histogram=None if pairs is None else _histogram_of(pairs),
        histogram_source="" if pairs is None else str(entry["id"]),
        attribution=entry.get("attribution", False),
    )


def _histogram_of(pairs: Any) -> LengthHistogram:
    """The histogram of `[[tokens, texts], ...]`."""
    whole = isinstance(pairs, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(type(n) is int for n in pair)
        for pair in pairs
    )
    if not whole:
        raise SpecError("histogram", pairs, "not a histogram", allowed=("[[tokens, texts], ...]",))
    return LengthHistogram(tuple((tokens, texts) for tokens, texts in pairs))


def _check_keys(entry: Mapping[str, Any]) -> None:
    known = (*_WORKLOAD, *_STRATEGY, *_OTHER)
    for key in entry:
        if key not in known:
            raise SpecError(key, entry[key], "unknown key", nearest=nearest(key, known))
    for key in _REQUIRED:
        if key not in entry:
            raise SpecError(key, None, "missing")
    for key in _TEXTS:
        if key in entry and not isinstance(entry[key], str):
            raise SpecError(key, entry[key], "not a text")
    for key in _SWITCHES:
        if key in entry and not isinstance(entry[key], bool):
            raise SpecError(key, entry[key], "not a switch", allowed=("true", "false"))
    norm = entry.get("max_grad_norm", 1.0)
    if isinstance(norm, bool) or not isinstance(norm, int | float) or not 0 <= norm < 1e9:
        raise SpecError("max_grad_norm", norm, "not a norm", allowed=("0 for none, or positive",))


def spec_json(spec: Spec) -> dict[str, Any]:
    """The entry that parses into this job again."""
    entry: dict[str, Any] = {"id": spec.id, "steps": spec.steps, "seed": spec.seed}
    for names, source in ((_WORKLOAD, spec.workload), (_STRATEGY, spec.strategy)):
        entry |= {key: getattr(source, name) for key, name in names.items()}
    if entry["max_grad_norm"] is None:
        entry["max_grad_norm"] = 0
    options = spec.options
    entry |= {"world": options.world, "attribution": options.attribution or None}
    if options.cap_bytes is not None:
        entry["cap"] = f"{options.cap_bytes}B"
    if options.histogram is not None:
        entry["histogram"] = options.histogram.to_json()
    return {key: value for key, value in entry.items() if value is not None}


def read_specs(file: Path) -> tuple[Spec, ...]:
    """The jobs of a suite file: TOML with `[[spec]]` tables, or one JSON object a line."""
    text = _read(file)
    entries = _json_lines(file, text) if file.suffix in (".jsonl", ".json") else _toml(file, text)
    if not 0 < len(entries) <= MOST_SPECS:
        raise SpecError("suite", str(file), "no specs in it", allowed=("[[spec]] tables",))
    specs = tuple(parse_spec(entry, f"spec-{i}") for i, entry in enumerate(entries, start=1))
    seen: set[str] = set()
    for spec in specs:
        if spec.id in seen:
            raise SpecError("id", spec.id, "used twice in the suite")
        seen.add(spec.id)
    return specs


def _read(file: Path) -> str:
    try:
        if not file.is_file():
            raise SpecError("suite", str(file), "no such file")
        if file.stat().st_size > _LARGEST_FILE_BYTES:
            raise SpecError("suite", str(file), "too large", allowed=("up to 16 MiB",))
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError("suite", str(file), f"cannot be read ({error})") from None


def _toml(file: Path, text: str) -> Sequence[Mapping[str, Any]]:
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SpecError("suite", str(file), f"not TOML ({error})") from None
    unknown = sorted(set(document) - {"spec", "defaults"})
    if unknown:
        raise SpecError("suite", unknown[0], "unknown table", allowed=("[defaults]", "[[spec]]"))
    defaults, entries = document.get("defaults", {}), document.get("spec", [])
    if not isinstance(defaults, dict) or not _all_tables(entries):
        raise SpecError("suite", str(file), "not of [defaults] and [[spec]] tables")
    return [defaults | entry for entry in entries]


def _json_lines(file: Path, text: str) -> Sequence[Mapping[str, Any]]:
    try:
        entries = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError):
        raise SpecError("suite", str(file), "not one JSON object a line") from None
    if not _all_tables(entries):
        raise SpecError("suite", str(file), "not one JSON object a line")
    return entries


def _all_tables(entries: object) -> bool:
    return isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)
