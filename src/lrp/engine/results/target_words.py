"""What an explanation explains, and what its model predicted, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lrp.engine.targets import Contrast, Similarity

if TYPE_CHECKING:
    from lrp.engine.results.explanation import Explanation


def target_words(e: Explanation, i: int) -> tuple[str, float | None]:
    """The target in words, and of a single class its probability."""
    target, entries = int(e.target[i]), e._request.entries
    if e._request.inner.starts:
        return "relevance that starts inside the model", None
    if entries is None:
        classes = int((e.start[i] != 0).sum())
        return f"a start relevance at {classes:,} classes, most at {_class(e, target)}", None
    entry = entries[i]
    if e._explainer.seed == "softmax":
        return "the softmax of all classes", None
    if isinstance(entry, Similarity):
        return f"similarity {float(e.start[i].sum()):.3g}", None
    if isinstance(entry, Contrast):
        other = int(e.logits[i].argmax()) if entry.b == "predicted" else int(e.start[i].argmin())
        against = (e._request.starts[1][i] < 0).nonzero().flatten().tolist()
        return f"{_class(e, target)}, not {_class(e, against[0] if against else other)}", None
    if e.logits.dim() > 2:
        places = int((e.start[i] != 0).any(0).sum())
        of_each = entry == "predicted" or getattr(entry, "class_", "") == "predicted"
        return f"{'the predicted classes' if of_each else _class(e, target)} at {places:,} places", None
    if e.logits.shape[1] == 1:
        return "the model's one output", None
    return _class(e, target), _probability(e, i, target)


def predicted_words(e: Explanation, i: int) -> str:
    """The class with the largest logit, and its probability."""
    if e.logits.dim() > 2:
        return "a class at each place"
    if e.logits.shape[1] == 1:
        return "the model's one output"
    best = int(e.logits[i].argmax())
    return with_probability(_class(e, best), _probability(e, i, best))


def with_probability(words: str, probability: float | None) -> str:
    return words if probability is None else f"{words}  {100 * probability:.1f} %"


def _class(e: Explanation, index: int) -> str:
    names = e._explainer.class_names
    return str(names[index]) if names is not None and index < len(names) else f"class {index}"


def _probability(e: Explanation, i: int, index: int) -> float | None:
    """None for a model with one logit. Of labels that are each on their own, the sigmoid."""
    if e.logits.shape[1] == 1:
        return None
    own = e._explainer.labels_are_independent
    z = e.logits[i].double()
    return float((z.sigmoid() if own else z.softmax(0))[index])
