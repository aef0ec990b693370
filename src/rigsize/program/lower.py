"""Templates lowered for one size and one device: what runs becomes allocations and frees.

Every template is lowered once, however many layers it is tiled to. Storages that lowering adds
(attention's log-sum-exp, workspaces of kernels) get ordinals after the traced ones of the group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rigsize.memory import rocm_scratch
from rigsize.memory.kernel_scratch import (
    column_sum_scratch_bytes,
    cublas_workspace_bytes,
    embedding_backward_scratch,
    layer_norm_backward_scratch,
)
from rigsize.memory.rocm_scratch import HIPBLASLT_WORKSPACE_BYTES, rocblas_workspace_bytes
from rigsize.program.attention import (
    AttentionLowering,
    AttentionNode,
    Kernel,
    choose_kernel,
    explain_choice,
    lower_attention,
)
from rigsize.program.categories import Categories
from rigsize.program.environment import Environment
from rigsize.program.four_bit import Product4Bit, temporaries_bytes
from rigsize.program.timeline import Place
from rigsize.trace.profile import Body, Event, Profile, Ref
from rigsize.trace.sizes import evaluate

ALLOC, FREE, GRADIENT, WORKSPACE, SAVE, CARRY = range(6)
HALF_BYTES = 2
AOTRITON = "attention buffers of ROCm are taken to be those of CUDA's kernels (AOTriton's not read)"
SAVES = ("save", "save_weight")
"""Copies to the host that `save_on_cpu` makes, of a weight or of anything else."""
_PREPARED = ("bias", "bias_padded", "q_padded", "k_padded", "v_padded")
"""Names of what SDPA makes for its kernel before it calls it (`program.attention_lowering`)."""


@dataclass(slots=True)
class Primitive:
    """One step of a lowered template."""

    kind: int
    ref: Ref
    """Storage for ALLOC, FREE, GRADIENT and CARRY."""
    name: str = ""
    """GRADIENT: the parameter, CARRY: what the next pass calls it, with `*` for the layer. SAVE:
    what is copied to the host."""
    num_bytes: int = 0
    """WORKSPACE and SAVE: its size."""
    place: Place | None = None


@dataclass(slots=True)
class Group:
    """What the storages of one traced group are."""

    sizes: list[int]
    places: list[Place]


@dataclass(slots=True)
class Lowered:
    """All templates of a body, lowered."""

    templates: dict[tuple[int, int], list[Primitive]]
    """By (template, traced group): the ordinals of added storages are a group's own."""
    groups: list[Group]
    spans: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    """By (template, traced layer): from where to where of it the layer's own code runs, without
    what happens between two layers; absent where only deaths are told of the layer."""
    kernels: dict[str, str] = field(default_factory=dict)
    """Why each attention node got its kernel, one line each."""
    assumptions: set[str] = field(default_factory=set)


class Lowering:
    """Lowers the templates of a body in the order of its schedule."""

    def __init__(
        self,
        profile: Profile,
        body: Body,
        values: Mapping[str, int],
        environment: Environment,
        categories: Categories,
        half_dtype: str,
    ) -> None:
        self.profile, self.body, self.values = profile, body, values
        self.environment, self.categories = environment, categories
        self.half_dtype = half_dtype
        nowhere = Place("unborn", "", "", "")
        self.result = Lowered(
            templates={},
            groups=[Group([0] * n, [nowhere] * n) for n in body.births],
        )
        self._layer_paths = tuple(f"{path}.*" for path in profile.stack_paths)
        self._saved: dict[tuple[int, Ref], tuple[AttentionLowering, dict[str, Ref], int]] = {}
        """By (group, output): the lowering, what it saved, the bytes of its mask's gradient."""
        self._consumed = {
            (g, e.ref)
            for _, g, t in body.schedule
            for e in body.templates[t]
            if e.kind == "attention_backward"
        }

    def run(self) -> Lowered:
        """The lowered templates of every traced group."""
        for phase, group, number in self.body.schedule:
            primitives = self._template(number, phase, group)
            self.result.templates[number, group] = primitives
        return self.result

    def _template(self, number: int, phase: str, group: int) -> list[Primitive]:
        out: list[Primitive] = []
        span: tuple[int, int] | None = None
        for event in self.body.templates[number]:
            start = len(out)
            getattr(self, f"_{event.kind}")(out, event, phase, group)
            own = event.kind == "gradient" or event.module.startswith(self._layer_paths)
            if group and own:
                span = (span[0] if span else start, len(out))
        if span is not None:
            self.result.spans[number, group] = span
        return out

    # -- events of the trace ----------------------------------------------------------------

    def _alloc(self, out: list[Primitive], event: Event, phase: str, group: int) -> None:
        size = evaluate(event.size, self.values)
        self._define(event.ref, group, size, self.categories.of(event, phase, group))
        place = self.categories.place("temporaries", phase, event.module, event.op, "derived")
        beside = [self._extra(group, size, place) for size in self._inside(event)]
        out.extend(Primitive(ALLOC, ref) for ref in (*beside, _known(event.ref)))
        out.extend(Primitive(FREE, ref) for ref in beside)

    def _inside(self, event: Event) -> tuple[int, ...]:
        """What an operator whose kernel depends on the size makes before its output."""
        if event.op != "bitsandbytes::gemm_4bit":
            return ()
        rows, outputs, inputs = (evaluate(n, self.values) for n in event.numbers)
        itemsize, nested = event.label
        return temporaries_bytes(
            Product4Bit(
                rows=rows,
                outputs=outputs,
                inputs=inputs,
                dtype=self.half_dtype if itemsize == HALF_BYTES else "float32",
                nested=nested,
                capability=self.environment.compute_capability,
                sm_count=self.environment.sm_count,
            )
        )

    def _free(self, out: list[Primitive], event: Event, _phase: str, _group: int) -> None:
        if event.ref is not None and (event.ref[0] != "kept" or is_state(event.ref)):
            out.append(Primitive(FREE, event.ref))

    def _carry(self, out: list[Primitive], event: Event, _phase: str, _group: int) -> None:
        out.append(Primitive(CARRY, _known(event.ref), event.label[0]))

    def _gradient(self, out: list[Primitive], event: Event, _phase: str, _group: int) -> None:
        out.append(Primitive(GRADIENT, _known(event.ref), event.label[0]))

    def _kernel(self, out: list[Primitive], event: Event, phase: str, group: int) -> None:
        environment = self.environment
        if environment.device != "cuda":
            return
        name = event.label[0]
        numbers = [evaluate(n, self.values) for n in event.numbers]
        if name == "gemm":
            for library, size, basis in self._workspaces():
                place = self.categories.place("workspaces", phase, event.module, library, basis)
                out.append(Primitive(WORKSPACE, ("own", -1), num_bytes=size, place=place))
            return
        if name in SAVES:
            out.append(Primitive(SAVE, ("host", -1), name, numbers[0]))
            return
        basis = "assumed" if environment.gfx else "derived"
        place = self.categories.place("temporaries", phase, event.module, event.op, basis)
        buffers = self._scratch_of(name, numbers)
        refs = [self._extra(group, size, place) for size in buffers]
        out.extend(Primitive(ALLOC, ref) for ref in refs)
        out.extend(Primitive(FREE, ref) for ref in refs)

    def _workspaces(self) -> list[tuple[str, int, str]]:
        """(library, bytes, basis) of what a thread's first product makes."""
        environment = self.environment
        if environment.gfx:
            rocblas = rocblas_workspace_bytes(environment.gfx)
            lt = ("hipblaslt", HIPBLASLT_WORKSPACE_BYTES, "assumed")
            return [("rocblas", rocblas, "assumed"), lt]
        size = cublas_workspace_bytes(environment.compute_capability, environment.torch_version)
        return [("cublas", size, "derived")]

    def _scratch_of(self, name: str, numbers: list[int]) -> list[int]:
        environment = self.environment
        sms, threads = environment.sm_count, environment.max_threads_per_sm
        if name == "column_sum":
            rows, columns = numbers
            reduction = environment.reduction
            staging = column_sum_scratch_bytes(rows, columns, sms, threads, reduction)
            return [size for size in staging if size]
        if name == "embedding_backward":
            return [size for _, size in embedding_backward_scratch(*numbers) if size]
        if name == "layer_norm_backward":
            rows, width = numbers
            if environment.gfx:
                partials = rocm_scratch.layer_norm_backward_scratch(rows, width, environment.gfx)
                return [size for _, size in partials]
            weight_bytes = HALF_BYTES if self.profile.key.compute == "half" else 2 * HALF_BYTES
            buffers = layer_norm_backward_scratch(rows, width, sms, weight_bytes)
            return [size for _, size in buffers if size]
        raise AssertionError(f"kernel {name} has no scratch rule")

    # -- attention --------------------------------------------------------------------------

    def _attention(self, out: list[Primitive], event: Event, phase: str, group: int) -> None:
        node = node_of(event, self.values, self.half_dtype)
        lowering = self._lower(node, event)
        place = self.categories.of(event, phase, group)
        derived = self.categories.place(
            place.category, phase, event.module, lowering.kernel, lowering.basis
        )
        refs: dict[str, Ref] = {"out": _known(event.ref)}
        for action, name, size in lowering.forward:
            if action == "alloc":
                if name == "out":
                    self._define(event.ref, group, size, place)
                else:
                    refs[name] = self._extra(group, size, derived)
                out.append(Primitive(ALLOC, refs[name]))
            else:
                out.append(Primitive(FREE, refs.pop(name)))
        if not lowering.out_is_token_major:
            # The model's transpose().contiguous() is a real copy here; the copy lives on.
            copied = self._extra(group, lowering.out_bytes, derived)
            out.extend((Primitive(ALLOC, copied), Primitive(FREE, copied)))
        saved = {name: ref for name, ref in refs.items() if name != "out"}
        if (group, event.ref) in self._consumed:
            mask_bytes = node.mask_elements * node.element_bytes
            self._saved[group, _known(event.ref)] = (lowering, saved, mask_bytes)
            if self.profile.key.saves_on_host:
                self._send(out, saved, group)
            out.extend(Primitive(FREE, ref) for ref in self._remade(saved).values())
        else:  # a recomputed block saves nothing on its first pass, inference never does
            out.extend(Primitive(FREE, ref) for ref in saved.values())

    def _attention_backward(
        self, out: list[Primitive], event: Event, phase: str, group: int
    ) -> None:
        lowering, saved, mask_bytes = self._saved[group, _known(event.ref)]
        place = self.categories.place(
            "temporaries", phase, event.module, lowering.kernel, lowering.basis
        )
        if self.profile.key.saves_on_host:
            saved = self._bring_back(out, saved, group)
        refs = dict(saved) | self._bring_back(out, self._remade(saved), group)
        visible = dict(zip(("dq", "dk", "dv"), event.outputs, strict=False))
        for action, name, size in lowering.backward:
            if action == "free":
                out.append(Primitive(FREE, refs.pop(name)))
                continue
            ref = visible.get(name)
            if ref is not None:
                self._define(ref, group, size, place)
                refs[name] = ref
            else:
                refs[name] = self._extra(group, size, place)
            out.append(Primitive(ALLOC, refs[name]))
        if len(event.outputs) > len(visible) and event.outputs[3] is not None:
            bias = event.outputs[3]
            self._define(bias, group, mask_bytes, place)
            out.append(Primitive(ALLOC, bias))

    def _remade(self, saved: Mapping[str, Ref]) -> dict[str, Ref]:
        """What selective recompute makes again: what goes into the fused operator, made beside it.

        Its outputs are kept. The plain kernel is no single operator: all of it is taken as kept.
        """
        key = self.profile.key
        selective = key.recompute == "selective" and not key.saves_on_host
        return {name: ref for name, ref in saved.items() if selective and name in _PREPARED}

    def _send(self, out: list[Primitive], saved: dict[str, Ref], group: int) -> None:
        """What the kernel saves beside its visible tensors is copied to the host, too."""
        for ref in saved.values():
            size = self.result.groups[group].sizes[_known(ref)[-1]]
            out += [Primitive(SAVE, ("host", -1), "save", size), Primitive(FREE, ref)]

    def _bring_back(
        self, out: list[Primitive], saved: dict[str, Ref], group: int
    ) -> dict[str, Ref]:
        """New storages for it, before the backward kernel runs."""
        members = self.result.groups[group]
        sizes = {
            name: (members.sizes[ref[-1]], members.places[ref[-1]]) for name, ref in saved.items()
        }
        refs = {name: self._extra(group, *origin) for name, origin in sizes.items()}
        out.extend(Primitive(ALLOC, ref) for ref in refs.values())
        return refs

    def _lower(self, node: AttentionNode, event: Event) -> AttentionLowering:
        environment = self.environment
        kernel, reason = attention_kernel(node, environment)
        self.result.kernels.setdefault(event.module, reason)
        lowering = lower_attention(
            node,
            kernel,
            compute_capability=environment.compute_capability,
            sm_count=environment.sm_count,
        )
        if environment.gfx and kernel != "math":
            lowering = replace(lowering, basis="assumed", assumptions=(AOTRITON,))
        self.result.assumptions.update(lowering.assumptions)
        return lowering

    # -- storages ---------------------------------------------------------------------------

    def _define(self, ref: Ref | None, group: int, size: int, place: Place) -> None:
        kind, ordinal = _known(ref)[0], _known(ref)[-1]
        assert kind == "own", "a storage is born by the group that owns it"
        self.result.groups[group].sizes[ordinal] = size
        self.result.groups[group].places[ordinal] = place

    def _extra(self, group: int, size: int, place: Place) -> Ref:
        members = self.result.groups[group]
        members.sizes.append(size)
        members.places.append(place)
        return ("own", len(members.sizes) - 1)


def node_of(event: Event, values: Mapping[str, int], half_dtype: str) -> AttentionNode:
    """The call of attention that an event tells of, at the size of `values` (`monomials_at`)."""
    numbers = [evaluate(n, values) for n in event.numbers]
    batch, heads, queries, width, kv_heads, keys, value_width, *mask = numbers
    dtype, kind, causal, dropout, gqa, needs_grad = event.label[:6]
    half = dtype != "float32"
    size = HALF_BYTES if half else 2 * HALF_BYTES
    elements = mask[0] * mask[1] * mask[2] * mask[3]
    packed_tokens = mask[4] if len(mask) > 4 else 0
    return AttentionNode(
        batch=batch,
        heads=heads,
        kv_heads=kv_heads,
        query_length=queries,
        key_length=keys,
        head_dim=width,
        value_head_dim=value_width,
        element_bytes=size,
        dtype=half_dtype if half else "float32",  # type: ignore[arg-type]
        mask=kind,
        mask_elements=elements,
        causal=causal,
        dropout=dropout,
        needs_grad=needs_grad,
        enable_gqa=gqa,
        packed_tokens=packed_tokens,
    )


def attention_kernel(node: AttentionNode, environment: Environment) -> tuple[Kernel, str]:
    """Which kernel the call gets on the device, and why."""
    if node.is_packed:
        return "flash", "flash (texts in one row)"
    if environment.force_flash:
        return "flash", "flash (asked for)"
    options: Any = {
        "compute_capability": environment.compute_capability,
        "torch_version": environment.torch_version,
        "cudnn_version": environment.cudnn_version,
        "gfx": environment.gfx,
    }
    return choose_kernel(node, **options), explain_choice(node, **options)


def is_state(ref: Ref) -> bool:
    """Whether it is what the pass before left."""
    return ref[0] == "kept" and str(ref[1]).startswith("state:")


def _known(ref: Ref | None) -> Ref:
    assert ref is not None
    return ref
