"""Old spellings of the configuration, lifted to today's: they stand in recipes and words that
people have, and in the trees that runs and checkpoints of before hold.

A spelling works for ever; whoever writes it is told once how it is written now.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from manyfaces.configs.value import Value


@dataclass
class Lifted:
    """A tree in today's spelling, what to tell the person about it, and what is wrong with it."""

    tree: Value
    notices: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def lift(tree: Value) -> Lifted:
    """The merged tree in today's spelling."""
    lifted = Lifted(tree)
    for step in _STEPS:
        step(lifted)
    return lifted


def lift_layer(tree: Value) -> Lifted:
    """One recipe, or one override word, in today's spelling: what has to be lifted before it is
    merged with others."""
    lifted = Lifted(tree)
    _augment(lifted)
    _mixture_order(lifted)
    _warmup(lifted)
    return lifted


_TRANSFORM_SETTINGS = {
    "mask": ("mask", "p"),
    "mask_top": ("mask", "top"),
    "flip": ("flip", "p"),
    "misalign": ("misalign", "p"),
    "shift_px": ("misalign", "shift_px"),
    "scale": ("misalign", "scale"),
    "rotate_deg": ("misalign", "rotate_deg"),
    "crop": ("crop", "p"),
    "crop_min": ("crop", "min_side"),
    "colour": ("colour", "p"),
    "brightness": ("colour", "brightness"),
    "contrast": ("colour", "contrast"),
    "saturation": ("colour", "saturation"),
    "gray": ("gray", "p"),
    "blur": ("blur", "p"),
    "blur_sigma_px": ("blur", "sigma_px"),
    "low_resolution": ("low_resolution", "p"),
    "low_resolution_px": ("low_resolution", "side_px"),
    "jpeg": ("jpeg", "p"),
    "jpeg_quality": ("jpeg", "quality"),
    "erase": ("erase", "p"),
    "erase_px": ("erase", "side_px"),
}
"""Word and setting of the transform, by the key that all transforms had in one mapping."""
_OFF_BY_DEFAULT = ("mask", "crop", "gray", "blur", "low_resolution", "jpeg", "erase")
"""Transforms whose probability was 0 where nobody set it."""


def _augment(lifted: Lifted) -> None:
    """`data.augment` was one mapping with the settings of all transforms; now a mapping there has
    the settings of each transform under its word."""
    augment = lifted.tree.get("data", "augment")
    if augment is None or not isinstance(augment.data, dict):
        return
    transforms: dict[str, Value] = {}
    old: dict[str, str] = {}
    for key, value in augment.data.items():
        path = f"data.augment.{key}"
        word, settings = key, value
        if not isinstance(value.data, dict):
            if key not in _TRANSFORM_SETTINGS:
                lifted.problems.append(f"{value.where}: {path}: {_unknown_setting(key)}")
                continue
            word, name = _TRANSFORM_SETTINGS[key]
            settings = Value({name: _written(value, path)}, value.where, written=path)
            old[path] = f"data.augment.{word}.{name}"
        if word in transforms:
            there = transforms[word]
            settings = replace(there, data=there.data | settings.data)
        transforms[word] = settings
    lifted.tree = lifted.tree.put(replace(augment, data=transforms), "data", "augment")
    if old:
        is_old = "is an old spelling" if len(old) == 1 else "are old spellings"
        lifted.notices.append(
            f"{augment.where}: {', '.join(old)} {is_old}, now {', '.join(old.values())}"
        )


def _unknown_setting(key: str) -> str:
    near = get_close_matches(key, _TRANSFORM_SETTINGS, 1)
    if not near:
        return "unknown key; write data.augment=[{kind: flip, p: 0.5}], or data.augment.flip.p=0.5"
    return f"unknown key; did you mean data.augment.{'.'.join(_TRANSFORM_SETTINGS[near[0]])}?"


def _written(value: Value, path: str) -> Value:
    """The value, and each item of a list, with the old key under which it was written."""
    data = value.data
    if isinstance(data, list):
        data = [_written(item, f"{path}[{number}]") for number, item in enumerate(data)]
    return replace(value, data=data, written=path)


def _augment_probability(lifted: Lifted) -> None:
    """Old settings of a transform did nothing where its probability was not set."""
    augment = lifted.tree.get("data", "augment")
    if augment is None or not isinstance(augment.data, list):
        return
    entries = list(augment.data)
    for number, entry in enumerate(entries):
        settings = entry.data if isinstance(entry.data, dict) else {}
        is_old = any(value.written is not None for value in settings.values())
        if is_old and "p" not in settings and _kind(entry) in _OFF_BY_DEFAULT:
            entries[number] = entry.put(Value(0.0, entry.where, "0"), "p")
    lifted.tree = lifted.tree.put(replace(augment, data=entries), "data", "augment")


def _mixture_order(lifted: Lifted) -> None:
    """`data.order: mixture` was the order shuffle over the parts of `data.mixture`. Its text stays,
    as only the merged tree tells whether there are parts."""
    order = lifted.tree.get("data", "order")
    if order is not None and order.data == "mixture":
        shuffle = replace(order, data="shuffle", text="mixture")
        lifted.tree = lifted.tree.put(shuffle, "data", "order")


def _mixture_parts(lifted: Lifted) -> None:
    """What was written as `data.order: mixture` is said by `data.mixture` alone."""
    order = lifted.tree.get("data", "order")
    if order is None:
        return
    word = order.child("kind") or order
    if word.data != "shuffle" or word.text != "mixture":
        return
    if _has(lifted.tree, "data", "mixture"):
        lifted.notices.append(_notice(word, "data.order=mixture", "data.mixture alone"))
    else:
        lifted.problems.append(
            f"{word.where}: data.order: mixture needs two datasets; set "
            "data.mixture='[{path: A, weight: 2}, {path: B, weight: 1}]'"
        )


def _order_settings(lifted: Lifted) -> None:
    """Settings of one order stood beside all of them."""
    for name, kind in (("images_per_identity", "pk"), ("window_shards", "shuffle")):
        value = lifted.tree.get("data", name)
        if value is None:
            continue
        lifted.tree = lifted.tree.without("data", name)
        order = lifted.tree.get("data", "order")
        chosen: Any = "shuffle"
        if order is not None and isinstance(order.data, str):
            chosen = order.data
        elif order is not None:
            chosen = _kind(order) or chosen  # a mapping without a kind is of the default kind
        if chosen != kind:  # it said nothing: another order was chosen
            continue
        new = lifted.tree.get("data", "order", name)
        if new is None or new.layer < value.layer:
            there = order if order is not None and isinstance(order.data, dict) else None
            mapping = {"kind": Value(kind, value.where, kind)} | (there.data if there else {})
            mapping[name] = value
            lifted.tree = lifted.tree.put(Value(mapping, value.where), "data", "order")
        lifted.notices.append(_notice(value, f"data.{name}", f"data.order.{name}"))


def _triplet(lifted: Lifted) -> None:
    """A triplet loss stood in the head, and `margin: none` left it alone."""
    triplet, margin = lifted.tree.get("head", "triplet"), lifted.tree.get("head", "margin")
    none = margin if margin is not None and "none" in (margin.data, _kind(margin)) else None
    if triplet is not None:
        lifted.tree = lifted.tree.without("head", "triplet")
    if none is not None:
        lifted.tree = lifted.tree.without("head", "margin")
    wanted = triplet if triplet is not None and triplet.data is not None else None
    if wanted is not None and not isinstance(wanted.data, dict):
        lifted.problems.append(
            f"{wanted.where}: head.triplet: must be a mapping, as objective={{kind: triplet}} is"
        )
        return
    objective = lifted.tree.get("objective")
    if objective is not None and objective.data is not None:
        if none is not None and none.layer >= objective.layer:
            _leave_out("margin_softmax", none, lifted)
        if wanted is not None:
            _change_triplet(wanted, lifted)
        elif triplet is not None and triplet.layer > objective.layer:
            _leave_out("triplet", triplet, lifted)
    elif wanted is not None:
        settings = dict(wanted.data)
        if (wire := lifted.tree.get("head", "wire_dtype")) is not None:  # one setting was for both
            settings = {"wire_dtype": wire, **settings}
        objective, new = _with_triplet(settings, wanted.where, none is not None)
        lifted.tree = lifted.tree.put(objective, "objective")
        lifted.notices.append(_notice(wanted, "head.triplet", new))
    elif none is not None:
        lifted.problems.append(_nothing_left(none, "head.margin: none"))


def _nothing_left(value: Value, what: str) -> str:
    return (
        f"{value.where}: {what} leaves nothing to train on; set objective=triplet, or another "
        "margin"
    )


def _objectives(lifted: Lifted) -> list[Value]:
    """The objective as a mapping, or those that a sum adds up."""
    objective = lifted.tree.get("objective")
    assert objective is not None
    listed = objective.child("of")
    entries = [objective]
    if listed is not None and isinstance(listed.data, list):
        entries = listed.data
    return [
        replace(entry, data={"kind": entry}, text=None) if isinstance(entry.data, str) else entry
        for entry in entries
    ]


def _put_objectives(lifted: Lifted, entries: list[Value]) -> None:
    objective = lifted.tree.get("objective")
    assert objective is not None
    if len(entries) > 1:
        listed = Value(entries, objective.where, layer=objective.layer)
        lifted.tree = lifted.tree.put(listed, "objective", "of")
    else:
        lifted.tree = lifted.tree.put(replace(entries[0], layer=objective.layer), "objective")


def _leave_out(word: str, value: Value, lifted: Lifted) -> None:
    """An objective in a layer below is without what an old word switched off."""
    entries = _objectives(lifted)
    left = [entry for entry in entries if _kind(entry) != word]
    old = "head.triplet: null" if word == "triplet" else "head.margin: none"
    if not left:
        lifted.problems.append(_nothing_left(value, old))
    elif len(left) < len(entries):
        _put_objectives(lifted, left)
        now = f"objective={_kind(left[0])}" if len(left) == 1 else f"objective.of without {word}"
        lifted.notices.append(_notice(value, old, now))


def _change_triplet(triplet: Value, lifted: Lifted) -> None:
    """Settings of `head.triplet` on top of an objective that is, or has, a triplet loss."""
    objective = lifted.tree.get("objective")
    assert objective is not None
    layer = max([triplet.layer, *(value.layer for value in triplet.data.values())])
    if objective.layer > layer:
        lifted.notices.append(f"{triplet.where}: head.triplet gives way to {objective.where}")
        return
    entries = _objectives(lifted)
    words = [_kind(entry) for entry in entries]
    if objective.layer == layer or words.count("triplet") != 1:
        lifted.problems.append(
            f"{triplet.where}: head.triplet and objective say two things; keep objective"
        )
        return
    number = words.index("triplet")
    for name, value in triplet.data.items():
        there = entries[number].child(name)
        if value.layer > (objective if there is None else there).layer:
            entries[number] = entries[number].put(value, name)
    _put_objectives(lifted, entries)
    now = "objective" if len(entries) == 1 else "objective.of.triplet"
    lifted.notices.append(_notice(triplet, "head.triplet", now))


def _with_triplet(settings: dict[str, Value], where: str, alone: bool) -> tuple[Value, str]:
    """The objective with these settings of a triplet loss, and how to write it."""
    one = Value({"kind": Value("triplet", where, "triplet"), **settings}, where)
    if alone:
        return one, "objective={kind: triplet, ...}"
    softmax = Value({"kind": Value("margin_softmax", where)}, where)
    both = Value({"kind": Value("sum", where), "of": Value([softmax, one], where)}, where)
    return both, "objective={kind: sum, of: [margin_softmax, {kind: triplet, ...}]}"


def _warmup(lifted: Lifted) -> None:
    """The schedule was one mapping for all its kinds: it held the warm-up, and the power of
    polynomials whatever it was."""
    schedule = lifted.tree.get("train", "schedule")
    if schedule is None or not isinstance(schedule.data, dict):
        return
    left = dict(schedule.data)
    warmup = left.pop("warmup_epochs", None)
    if warmup is not None:
        new = "train.warmup_epochs"
        if lifted.tree.get(*new.split(".")) is not None:
            lifted.problems.append(
                f"{warmup.where}: train.schedule.warmup_epochs and {new} say two things; keep {new}"
            )
            return
        lifted.notices.append(_notice(warmup, "train.schedule.warmup_epochs", new))
        lifted.tree = lifted.tree.put(warmup, *new.split("."))
    if "power" in left and _kind(schedule) == "cosine":
        del left["power"]
    lifted.tree = lifted.tree.put(replace(schedule, data=left), "train", "schedule")


_STEPS: Sequence[Callable[[Lifted], None]] = (
    _augment_probability,
    _mixture_parts,
    _order_settings,
    _triplet,
)


def _has(tree: Value, *path: str) -> bool:
    value = tree.get(*path)
    return value is not None and value.data not in (None, [], {})


def _kind(value: Value) -> Any:
    kind = value.child("kind")
    return None if kind is None else kind.data


def _notice(value: Value, old: str, new: str) -> str:
    return f"{value.where}: {old} is an old spelling, now {new}"
