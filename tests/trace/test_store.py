"""Where a profile comes from: shipped first, then the cache, then a trace."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rigsize.models import ModelSource
from rigsize.trace import child, store
from rigsize.trace.profile import Body, Event, Profile, TraceKey, pack

POINT = {"B": 2, "S": 40, "T": 0}
KEY = TraceKey(
    config_digest="feedfacefeedface",
    task="causal-lm",
    use="training",
    compute="fp32",
    attention="sdpa",
    padded=True,
    recompute="none",
    device="accelerator",
    num_labels=3,
    hold_output=True,
)
SOURCE = ModelSource(
    name="some-model",
    origin="config",
    config={"model_type": "llama"},
    path=None,
    checkpoint_parameters=None,
    checkpoint_note="",
)


def profile(key: TraceKey = KEY, domain: str = "bN.s8.0", size: int = 4) -> Profile:
    event = Event("alloc", ("own", 0), "mm", "", ((size, "BS"),))
    return Profile(
        key=key,
        versions={"torch": "2.13.0"},
        representative=(),
        traced_depths=(),
        stack_paths=(),
        tensors=(),
        bodies=(Body(((event,),), (1,), (("forward", 0, 0),)),),
        domains={domain: 0},
        limits=(),
    )


class Tracer:
    """Stands for the child process and counts its calls."""

    def __init__(self, answer: Profile) -> None:
        self.answer, self.calls = answer, 0
        self.work, self.both = profile(size=16), False

    def __call__(self, *_: Any, work: bool = False) -> child.Traces:
        self.calls += 1
        return child.Traces(pack(self.answer), pack(self.work) if work or self.both else b"")


@pytest.fixture
def tracer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Tracer:
    found = Tracer(profile())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "PACKAGED", tmp_path / "shipped")
    monkeypatch.setattr(child, "trace_in_child", found)
    return found


def cached_file() -> Path:
    (file,) = store.cache_folder().glob("*.profile")
    return file


@pytest.mark.parametrize(
    ("more", "used"),
    [
        ({}, ""),
        ({"adapter": "method=lora,rank=8"}, "-peft-9.1"),
        ({"quantization": "nf4"}, "-bitsandbytes-9.1"),
        ({"quantization": "int8-fp16"}, "-bitsandbytes-9.1"),
        (
            {"quantization": "int8-torchao", "adapter": "method=lora,rank=8"},
            "-peft-9.1-torchao-9.1",
        ),
    ],
)
def test_a_cached_trace_is_of_the_libraries_it_used(
    more: dict[str, str], used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_minor", lambda _: "9.1")
    name = store.file_name(replace(KEY, **more), "bN.s8.0")  # type: ignore[arg-type]
    assert name.endswith(f"-bN.s8.0{used}.profile")


def test_traced_once_then_cached(tracer: Tracer) -> None:
    first = store.find_profile(SOURCE, KEY, POINT)
    assert store.find_profile(SOURCE, KEY, POINT) == first == profile()
    assert tracer.calls == 1


@pytest.mark.parametrize("keep", [0, 1, 60])
def test_a_truncated_cache_file_is_traced_anew(tracer: Tracer, keep: int) -> None:
    store.find_profile(SOURCE, KEY, POINT)
    cached_file().write_bytes(cached_file().read_bytes()[:keep])
    assert store.find_profile(SOURCE, KEY, POINT) == profile()
    assert tracer.calls == 2
    assert store.find_profile(SOURCE, KEY, POINT) == profile()
    assert tracer.calls == 2


def test_work_is_cached_with_what_was_traced_for_it(tracer: Tracer) -> None:
    assert store.find_work(SOURCE, KEY, POINT) == tracer.work
    assert store.find_profile(SOURCE, KEY, POINT) == profile()
    assert store.stored_work(KEY, POINT) == tracer.work
    assert tracer.calls == 1


def test_work_that_comes_along_is_cached_too(tracer: Tracer) -> None:
    tracer.both = True
    store.find_profile(SOURCE, KEY, POINT)
    assert store.find_work(SOURCE, KEY, POINT) == tracer.work
    assert tracer.calls == 1


def test_work_ships_under_a_name_of_its_own(tracer: Tracer) -> None:
    packed = {KEY.text(): pack(profile()), KEY.text() + store.WORK: pack(tracer.work)}
    store.write_pack(store.pack_file(KEY.config_digest), packed)
    assert store.find_work(SOURCE, KEY, POINT) == tracer.work
    assert store.find_profile(SOURCE, KEY, POINT) == profile()
    assert tracer.calls == 0


def test_what_ships_comes_first(tracer: Tracer) -> None:
    store.find_profile(SOURCE, KEY, POINT)
    shipped = profile(size=8)
    store.write_pack(store.pack_file(KEY.config_digest), {KEY.text(): pack(shipped)})
    assert store.find_profile(SOURCE, KEY, POINT) == shipped
    assert tracer.calls == 1


def test_a_shipped_file_without_the_key_or_the_domain_answers_nothing(tracer: Tracer) -> None:
    other = replace(KEY, compute="amp")
    unaligned = profile(domain="bN.sx.0")
    packed = {other.text(): pack(profile(other)), KEY.text(): pack(unaligned)}
    store.write_pack(store.pack_file(KEY.config_digest), packed)
    assert store.find_profile(SOURCE, KEY, POINT) == profile()
    assert tracer.calls == 1
    assert store.find_profile(SOURCE, KEY, {**POINT, "S": 41}) == unaligned
    assert store.find_profile(SOURCE, other, POINT) == profile(other)
    assert tracer.calls == 1


def test_domains_do_not_push_one_another_out_of_the_cache(tracer: Tracer) -> None:
    store.find_profile(SOURCE, KEY, POINT)
    tracer.answer = profile(domain="bN.sx.0")
    store.find_profile(SOURCE, KEY, {**POINT, "S": 41})
    for length in (40, 41, 48, 43):
        store.find_profile(SOURCE, KEY, {**POINT, "S": length})
    assert tracer.calls == 2


def test_a_window_is_another_domain(tracer: Tracer) -> None:
    tracer.answer = replace(profile(domain="bN.s8.1"), limits=(32,))
    store.find_profile(SOURCE, KEY, POINT)
    assert store.stored_profile(KEY, POINT) == tracer.answer
    assert store.stored_profile(KEY, {**POINT, "S": 32}) is None


def test_a_broken_shipped_file_is_passed_over(tracer: Tracer) -> None:
    path = store.pack_file(KEY.config_digest)
    store.write_pack(path, {KEY.text(): pack(profile(size=8))})
    path.write_bytes(path.read_bytes()[:-20])
    assert store.find_profile(SOURCE, KEY, POINT) == profile()
    path.write_bytes(b"no json")
    assert store.read_packaged(KEY) is None


def test_a_pack_holds_what_was_written(tmp_path: Path) -> None:
    packed = {"b": b"\n\nxyz", "a": b"", "c": b"1"}
    store.write_pack(tmp_path / "x.profiles", packed)
    assert store.read_pack(tmp_path / "x.profiles") == packed
    assert store.read_pack(tmp_path / "none.profiles") == {}


def test_a_cache_that_cannot_be_written_costs_time_only(
    tracer: Tracer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    store.find_profile(SOURCE, KEY, POINT)
    store.find_profile(SOURCE, KEY, POINT)
    assert tracer.calls == 2


def test_another_schema_is_no_profile(tracer: Tracer) -> None:
    store.find_profile(SOURCE, KEY, POINT)
    cached_file().write_bytes(pack(profile())[::-1])
    assert store.read_profile(cached_file()) is None
