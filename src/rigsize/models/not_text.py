"""Classes that transformers names for a text task and that do not work on text alone.

`python -m validation.zoo` finds them: their default configuration fails on token ids and labels.
"""

from __future__ import annotations

__all__ = ["why_not_text"]

_SOUND = "it turns sound into text, and its labels are the tokens of one row"
_CODES = "it predicts codes of sound for a text encoder of its own"
_OTHER_MODEL = "it drafts for another model, whose hidden states it reads"

_SEQ2SEQ_OF_SOUND = (
    "audioflamingo3 glmasr granite_speech granite_speech_plus moss_transcribe_diarize "
    "musicflamingo nemo_speechlm qwen2_audio qwen3_asr vibevoice_asr voxtral voxtral_realtime"
).split()
_REASONS: dict[tuple[str, str], str] = {
    **{(model_type, "seq2seq-lm"): _SOUND for model_type in _SEQ2SEQ_OF_SOUND},
    ("bros", "token-classification"): "it reads the box of every token on its page",
    ("encoder-decoder", "seq2seq-lm"): "it joins two other models, whose configurations it needs",
    ("gemma4_assistant", "causal-lm"): _OTHER_MODEL,
    ("gemma4_unified_assistant", "causal-lm"): _OTHER_MODEL,
    ("git", "causal-lm"): "it describes a picture, whose features stand before the text",
    ("layoutlmv2", "sequence-classification"): "it reads a picture of the page (detectron2)",
    ("layoutlmv2", "token-classification"): "it reads a picture of the page (detectron2)",
    ("musicgen", "causal-lm"): _CODES,
    ("musicgen_melody", "causal-lm"): _CODES,
}


def why_not_text(model_type: str, task: str) -> str:
    """Why the class of a task is no question of text; empty where it is one."""
    return _REASONS.get((model_type, task), "")
