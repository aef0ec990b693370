"""One Program on several devices: each layer runs where accelerate's device_map puts it.

Mirrors `dispatch_model` and `AlignDevicesHook` of accelerate 1.15 (big_modeling.py, hooks.py): a
module runs on its device, and before it runs its arguments are copied there, in every call and for
every module anew, but for the cache (`_skip_keys_device_placement`). So past the first device each
layer holds a copy of the rotary tables and masks while it runs, and the first layer of a device one
of the hidden states. What no module of the map made stays on the first device, where the ids are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from rigsize.program.build import Program
from rigsize.program.timeline import Timeline
from rigsize.trace.profile import is_embedding

__all__ = ["HOME", "Placement", "split"]

HOME = 0
"""The device of the ids, and of what no module of the map makes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where modules go."""

    devices: int
    modules: Mapping[str, int]
    """Device by module path, whole subtrees."""
    layers: tuple[str, ...]
    """Path of every full layer, in the order of their groups (from 1)."""
    left_out: tuple[str, ...] = ()
    """Modules that no device has room for; they are counted on the last."""

    @classmethod
    def of(cls, found: Mapping[str, int | str], layers: tuple[str, ...], devices: int) -> Placement:
        """What `trace.device_map` found."""
        left = tuple(name for name, device in found.items() if isinstance(device, str))
        modules = {
            name: devices - 1 if isinstance(device, str) else device
            for name, device in found.items()
        }
        return cls(devices=devices, modules=modules, layers=layers, left_out=left)

    def of_module(self, path: str) -> int:
        """The device of a module, of a part of one, or of a parameter."""
        while path:
            if path in self.modules:
                return self.modules[path]
            path = path.rpartition(".")[0]
        return self.modules.get("", HOME)

    def of_layer(self, group: int) -> int:
        """The device of a full layer."""
        return self.of_module(self.layers[group - 1])


def split(program: Program, placement: Placement) -> list[Program]:
    """The part of every device, on the timeline of the whole."""
    devices = _device_of(program, placement)
    parts = [
        replace(program, slices={}, phase_starts=dict(program.phase_starts), devices=[])
        for _ in range(placement.devices)
    ]
    for name, operations in program.slices.items():
        dealt = _Dealer(program, placement, devices).deal(operations)
        for part, own in zip(parts, dealt, strict=True):
            part.slices[name] = own
            if len(part.phase_starts.get(name, ())) > 1:  # places in the whole slice
                part.phase_starts[name] = [(0, program.phase_starts[name][0][1])]
    _workspaces(program, parts, devices)
    return parts


def _device_of(program: Program, placement: Placement) -> dict[int, int]:
    """Devices by storage; of what is missing, the first."""
    timeline, layers = program.timeline, program.layer_of
    found = {p.storage: placement.of_module(p.name) for p in program.parameters}
    by_module: dict[str, int] = {}
    for storage, place in enumerate(timeline.places):
        if storage in found:
            continue
        group = layers.get(storage, 0)
        if group:
            found[storage] = placement.of_layer(group)
            continue
        if place.module not in by_module:
            by_module[place.module] = _of_made_by(place.module, placement)
        found[storage] = by_module[place.module]
    return found


def _of_made_by(module: str, placement: Placement) -> int:
    """A buffer's place is named by its tensor; what the whole model makes stays with the ids."""
    path = module.removeprefix("buffer:")
    return placement.of_module(path) if path and "*" not in path else HOME


class _Dealer:
    """Deals the operations of one slice, and copies what a layer reads from elsewhere."""

    def __init__(self, program: Program, placement: Placement, devices: dict[int, int]) -> None:
        self.timeline: Timeline = program.timeline
        self.layers, self.placement, self.devices = program.layer_of, placement, devices
        self.dealt: list[list[int]] = [[] for _ in range(placement.devices)]
        self.passed: dict[int, None] = {}
        """Storages that may be an argument of a later layer."""
        self.copies: list[int] = []
        self.group = 0

    def deal(self, operations: list[int]) -> list[list[int]]:
        """The operations by device."""
        for operation in operations:
            storage = operation if operation >= 0 else ~operation
            if operation >= 0:
                self._enter(self.layers.get(storage, 0))
                if self._is_argument(storage):
                    self.passed[storage] = None
            else:
                self.passed.pop(storage, None)
            self.dealt[self.devices.get(storage, HOME)].append(operation)
        self._enter(0)
        return self.dealt

    def _enter(self, group: int) -> None:
        if group == self.group:
            return
        if self.group:
            own = self.dealt[self.placement.of_layer(self.group)]
            own.extend(~copy for copy in self.copies)
            self.copies = []
        self.group = group
        if group:
            self._copy_to(self.placement.of_layer(group))

    def _copy_to(self, device: int) -> None:
        for storage in self.passed:
            if self.devices.get(storage, HOME) != device:
                place = replace(self.timeline.places[storage], op="send_to_device", basis="derived")
                copy = self.timeline.storage(self.timeline.sizes[storage], place)
                self.devices[copy] = device
                self.copies.append(copy)
                self.dealt[device].append(copy)

    def _is_argument(self, storage: int) -> bool:
        """Activations; the embeddings' output is one for the first layer alone, which is beside."""
        place = self.timeline.places[storage]
        return place.category.startswith("activations") and not is_embedding(place.module)


def _workspaces(program: Program, parts: list[Program], devices: dict[int, int]) -> None:
    """Each device has a cuBLAS handle of its own, and with it a workspace."""
    timeline = program.timeline
    made = [s for s, place in enumerate(timeline.places) if place.category == "workspaces"]
    for storage in made:
        for number, part in enumerate(parts):
            if number != devices.get(storage, HOME):
                copy = timeline.storage(timeline.sizes[storage], timeline.places[storage])
                part.slices["first"].insert(0, copy)
