"""The classifier layers: found, cut off, replaced.

The oracles are timm's get_classifier, hooks on the model itself, and plain torchvision and timm models that read what
was saved with nothing of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision.models as tv
from torch import Tensor, nn

from lrp.errors import ModelError
from lrp.models.architectures import class_axes_of_weights
from lrp.models.checkpoints import checkpoint_architecture, save_checkpoint
from lrp.models.loading import load_model
from lrp.models.weights import hash_of_model_weights
from lrp.survey.build import set_check_weights
from lrp.train.heads import REMEDY, find_heads, model_with_new_head, split_head

X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
CLASSES = 5


def message(call: Callable[..., Any], *args: Any, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- real architectures -------------------------------------------------------------------------------------

# One for each form that heads have; `lrp models --check` knows many more.
TORCHVISION = ("alexnet", "googlenet", "mobilenet_v3_small", "resnet18", "squeezenet1_1")
TIMM = (
    "crossvit_tiny_240", "deit_tiny_distilled_patch16_224", "dla46x_c", "levit_128s", "repvit_m1", "volo_d1_224",
)  # fmt: skip
SEVERAL = {
    "timm:crossvit_tiny_240": ("head.0", "head.1"),
    "timm:deit_tiny_distilled_patch16_224": ("head", "head_dist"),
    "timm:levit_128s": ("head.linear", "head_dist.linear"),
    "timm:repvit_m1": ("head.head.l", "head.head_dist.l"),
    "timm:volo_d1_224": ("aux_head", "head"),
}


@pytest.mark.parametrize("name", [*TORCHVISION, *(f"timm:{name}" for name in TIMM)])
def test_heads_are_found_and_cut_off(name):
    torch.manual_seed(0)
    model, preprocessing, _ = load_model(name, pretrained=False)
    # What lies far below the heads is not the point; but CrossViT's inner blocks are one for each of its two scales.
    for module in [model] if "crossvit" in name else model.modules():
        if isinstance(blocks := getattr(module, "blocks", None), nn.Sequential | nn.ModuleList):
            module.blocks = blocks[:1]
    if name == "timm:volo_d1_224":
        model.network = nn.ModuleList(m[:1] if isinstance(m, nn.Sequential) else m for m in model.network)
    own = {path.rpartition(".")[0] for path in class_axes_of_weights(name, preprocessing)}
    size = (64, 64) if name in TORCHVISION else preprocessing.geometry.crop
    images = torch.randn(3, 3, *size)
    set_check_weights(model, images)  # or all logits would be equal
    parts = split_head(model, images[:2])

    known = set(SEVERAL.get(name, parts.heads))
    assert set(parts.heads) == known & own and (name in SEVERAL or len(parts.heads) == 1)
    if name.startswith("timm:"):
        theirs = model.get_classifier()
        owned = [m for head in (theirs if isinstance(theirs, tuple) else (theirs,)) for m in head.modules()]
        assert all(any(model.get_submodule(path) is m for m in owned) for path in known - {"aux_head"})

    seen: dict[str, Tensor] = {}
    for path in parts.heads:  # what really goes into the heads
        model.get_submodule(path).register_forward_pre_hook(
            lambda _, inputs, path=path: seen.update({path: inputs[0]})
        )
    for count in (1, 3):
        with torch.no_grad():
            expected = model(images[:count])
            features = parts.trunk(images[:count])
            logits = parts.tail(features)
        assert torch.allclose(logits, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))
    assert expected.std(0).max() > 1e-3
    with torch.no_grad():
        model(images)  # the tail calls the same layers, so that the hooks must see the model alone
    assert isinstance(features, tuple) and len(features) == len(parts.heads)
    for path, found in zip(parts.heads, features, strict=True):
        assert torch.allclose(found, seen[path], rtol=1e-5, atol=1e-6)

    assert not list(parts.trunk.parameters())
    heads = [p for path in parts.heads for p in model.get_submodule(path).parameters()]
    assert [id(p) for p in parts.tail.parameters()] == [id(p) for p in heads]


def test_learned_weights_after_the_heads_are_refused():
    """The one architecture among all of `lrp models --check` whose heads are not its last parameters."""
    model, preprocessing, _ = load_model("timm:efficientvim_m1", pretrained=False)
    example = torch.zeros(2, 3, *preprocessing.geometry.crop)
    assert "EfficientViM: its logits come from no layers that could be replaced" in message(
        split_head, model, example
    )


# --- small models -------------------------------------------------------------------------------------------


class Small(nn.Module):
    """8 x 8 pixels, their mean of each row; then a function of the layers given."""

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.after = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self, self.stem(x).relu(), x)


def linear(outputs: int = CLASSES) -> nn.Linear:
    return nn.Linear(4, outputs)


def pooled(maps: Tensor) -> Tensor:
    return maps.mean((2, 3))


WORKING = {
    "a linear layer": (Small(lambda m, f, x: m.fc(pooled(f)), fc=linear()), ("fc",)),
    "a convolution, then ReLU and mean": (
        Small(lambda m, f, x: pooled(m.fc(f).relu()), fc=nn.Conv2d(4, CLASSES, 1)),
        ("fc",),
    ),
    "without bias": (Small(lambda m, f, x: m.fc(pooled(f)), fc=nn.Linear(4, CLASSES, bias=False)), ("fc",)),
    "two, the second made first": (
        Small(lambda m, f, x: (m.b(f.amax((2, 3))) + m.a(pooled(f))) / 2, a=linear(), b=linear()),
        ("a", "b"),
    ),
    "the number of images, asked of the image": (
        Small(lambda m, f, x: m.fc(pooled(f)).reshape(x.shape[0], -1), fc=linear()),
        ("fc",),
    ),
    "constants": (
        Small(lambda m, f, x: m.fc(pooled(f)) * torch.arange(1.0, CLASSES + 1), fc=linear()),
        ("fc",),
    ),
    "dropout around": (
        Small(
            lambda m, f, x: m.drop(m.fc(m.drop(pooled(f)))),
            fc=linear(),
            drop=nn.Dropout(0.5),
        ),
        ("fc",),
    ),
}


@pytest.mark.parametrize("case", WORKING)
def test_forms_of_heads(case):
    model, heads = WORKING[case]
    model.train()
    before = hash_of_model_weights(model)
    assert find_heads(model, X[:2]) == heads
    parts = split_head(model, X[:2])
    assert model.training and hash_of_model_weights(model) == before
    features = parts.trunk(X)
    model.eval()
    expected = model(X)
    assert parts.heads == heads
    assert torch.allclose(parts.tail(features), expected, atol=1e-6)
    assert torch.allclose(parts.tail(parts.trunk(X[:1])), expected[:1], atol=1e-6)


def test_the_tail_trains_the_model_itself():
    model = Small(lambda m, f, x: (m.a(pooled(f)) + m.b(f.amax((2, 3)))) / 2, a=linear(), b=linear()).eval()
    parts = split_head(model, X[:2])
    features = tuple(values.detach() for values in parts.trunk(X))
    parts.tail(features).square().sum().backward()
    ours = [p.grad.clone() for p in parts.tail.parameters()]
    model.zero_grad()
    model(X).square().sum().backward()
    theirs = [p.grad for layer in (model.a, model.b) for p in layer.parameters()]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs, strict=True))
    optimiser = torch.optim.SGD(parts.tail.parameters(), lr=0.1)
    optimiser.step()
    assert torch.allclose(parts.tail(features), model(X), atol=1e-6)


def test_the_trunk_reads_the_weights_as_they_are_now():
    model = Small(lambda m, f, x: m.fc(pooled(f)), fc=linear()).eval()
    parts = split_head(model, X[:2])
    with torch.no_grad():
        model.stem.weight.mul_(2)
    assert torch.allclose(parts.tail(parts.trunk(X)), model(X), atol=1e-6)


def test_the_tail_ends_before_the_softmax():
    model = Small(lambda m, f, x: m.fc(pooled(f)).softmax(1), fc=linear()).eval()
    parts = split_head(model, X[:2])
    assert torch.allclose(parts.tail(parts.trunk(X)).softmax(1), model(X), atol=1e-6)
    assert not torch.allclose(parts.tail(parts.trunk(X)), model(X), atol=1e-3)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x)


def tied(model: Small, one: str, other: str) -> Small:
    getattr(model, one).weight = getattr(model, other).weight
    return model


def fed(model: Any, maps: Tensor, image: Tensor) -> Tensor:
    first = model.a(pooled(maps))
    return first + model.b(first)


NONE = "Small: its logits come from no layers that could be replaced: {}; " + REMEDY
REFUSED = {
    "batch norm last": (
        Small(lambda m, f, x: m.norm(m.fc(pooled(f))), fc=linear(), norm=nn.BatchNorm1d(CLASSES)),
        "norm (batch_norm) is no linear layer or convolution",
    ),
    "a learned scale": (
        Small(lambda m, f, x: m.fc(pooled(f)) * m.scale.weight[0, 0], fc=linear(), scale=nn.Linear(1, 1)),
        "the model (select) is no linear layer or convolution",
    ),
    "another way": (
        Small(lambda m, f, x: m.fc(pooled(f)) * m.gate(pooled(f)), fc=linear(), gate=linear(1)),
        "gate (linear) has 1 outputs, not 5",
    ),
    "a subclass with a mind of its own": (
        Small(lambda m, f, x: m.fc(pooled(f)), fc=Doubled(4, CLASSES)),
        "fc (linear) does more than this operation",
    ),
    "a padding of its own": (
        Small(
            lambda m, f, x: pooled(m.fc(f)),
            fc=nn.Conv2d(4, CLASSES, 3, padding=1, padding_mode="circular"),
        ),
        "fc (conv2d) does more than this operation",
    ),
    "the same layer twice": (
        Small(lambda m, f, x: m.fc(pooled(f)) + m.fc(f.amax((2, 3))), fc=linear()),
        "the weights of fc (linear) are computed, or used elsewhere too",
    ),
    "computed": (
        Small(lambda m, f, x: m.fc(pooled(f)), fc=torch.nn.utils.parametrizations.weight_norm(linear())),
        "the weights of fc (linear) are computed, or used elsewhere too",
    ),
    "tied to each other": (
        tied(Small(lambda m, f, x: m.a(pooled(f)) + m.b(f.amax((2, 3))), a=linear(), b=linear()), "a", "b"),
        "the weights of b (linear) are computed, or used elsewhere too; "
        "the weights of a (linear) are computed, or used elsewhere too",
    ),
    "tied to what only training calls": (
        tied(Small(lambda m, f, x: m.fc(pooled(f)), spare=linear(), fc=linear()), "spare", "fc"),
        "the weights of fc (linear) are computed, or used elsewhere too",
    ),
    "tied to the trunk": (
        tied(
            Small(lambda m, f, x: pooled(m.fc(m.two(f))), two=nn.Conv2d(4, 4, 1), fc=nn.Conv2d(4, 4, 1)),
            "fc",
            "two",
        ),
        "the weights of fc (conv2d) are computed, or used elsewhere too",
    ),
    "one feeds the other": (
        Small(fed, a=linear(), b=nn.Linear(CLASSES, CLASSES)),
        "a (linear) also feeds another of them",
    ),
    "the image around": (
        Small(lambda m, f, x: m.fc(pooled(f)) + x.mean((1, 2, 3))[:, None], fc=linear()),
        "the image itself reaches them around all layers",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_heads_that_cannot_be_replaced(case):
    model, reason = REFUSED[case]
    assert message(find_heads, model, X[:2]) == NONE.format(reason)
    assert message(split_head, model, X[:2]) == NONE.format(reason)


def test_no_layers_and_no_logits():
    pixels = Small(lambda m, f, x: x.flatten(1))
    assert message(find_heads, pixels, X[:2]) == NONE.format(
        "no layer with parameters was found; the image itself reaches them around all layers"
    )
    maps = Small(lambda m, f, x: m.fc(f), fc=nn.Conv2d(4, CLASSES, 1))
    assert message(find_heads, maps, X[:2]) == (
        f"Small gives an output of shape [N, 5, 8, 8], not logits [N, K]; {REMEDY}"
    )


def test_a_fixed_number_of_images_cannot_be_cut():
    model = Small(lambda m, f, x: m.fc(pooled(f).reshape(2, 4)), fc=linear())
    assert find_heads(model, X[:2]) == ("fc",)
    assert message(split_head, model, X[:2]) == (
        "Small cannot be cut: its graph was captured for 2 images and takes no other number, where any number was "
        f"expected; {REMEDY}"
    )


def test_sizes_that_the_heads_cannot_tell():
    model = Small(
        lambda m, f, x: m.fc(f.reshape(-1, 4)).reshape(x.shape[0], 64, CLASSES).mean(1), fc=linear()
    )
    assert message(split_head, model, X[:2]) == (
        f"what follows fc needs sizes that its output does not tell; {REMEDY}"
    )


# --- another number of classes ------------------------------------------------------------------------------


def plain(name: str, classes: int) -> nn.Module:
    """The model as its own library builds it."""
    if name == "efficientnet_lite0":
        name = "timm:tf_efficientnet_lite0"
    if name.startswith("timm:"):
        return timm.create_model(name.removeprefix("timm:"), num_classes=classes)
    options = {"aux_logits": False, "transform_input": True, "init_weights": False}
    return tv.get_model(name, weights=None, num_classes=classes, **(options if name == "googlenet" else {}))


@pytest.mark.parametrize(
    "name, suffix",
    [
        ("squeezenet1_1", ".pth"),
        ("squeezenet1_1", ".safetensors"),
        ("resnet18", ".pth"),
        ("googlenet", ".pth"),
        ("efficientnet_lite0", ".pth"),
        ("timm:levit_128s", ".safetensors"),
        ("timm:efficientvim_m1", ".pth"),
    ],
)
def test_an_adapted_model_saves_and_loads_with_nothing_of_ours(tmp_path, name, suffix):
    made = model_with_new_head(name, CLASSES, pretrained=name == "efficientnet_lite0")
    assert made.architecture == name and not made.model.training
    images = torch.randn(2, 3, *made.preprocessing.geometry.crop)
    if name != "efficientnet_lite0":
        set_check_weights(made.model, images)
    path = tmp_path / f"mine{suffix}"
    save_checkpoint(path, made.model, made.architecture, list("abcde"), made.preprocessing)
    loaded, theirs = load_model(str(path)), plain(name, CLASSES).eval()
    if suffix == ".pth":
        state = torch.load(path, weights_only=True)
    else:
        import safetensors.torch

        state = safetensors.torch.load_file(path)
    theirs.load_state_dict(state)
    with torch.no_grad():
        expected = made.model(images)
        assert expected.shape == (2, CLASSES) and expected.std(0).max() > 1e-3
        assert torch.equal(loaded.model(images), expected) and torch.equal(theirs(images), expected)
    assert loaded.preprocessing == made.preprocessing and checkpoint_architecture(str(path)) == name


@pytest.mark.parametrize("classes", [3, 1000])
def test_all_but_the_heads_is_as_loaded(classes):
    state = model_with_new_head("efficientnet_lite0", classes, seed=7).model.state_dict()
    loaded = load_model("efficientnet_lite0").model.state_dict()
    assert state.keys() == loaded.keys()
    others = [n for n in loaded if not n.startswith("classifier.")]
    assert len(others) == len(loaded) - 2 and all(torch.equal(state[n], loaded[n]) for n in others)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        layer = nn.Linear(1280, classes)
    assert torch.equal(state["classifier.weight"], layer.weight)
    assert torch.equal(state["classifier.bias"], layer.bias)


def test_the_seed_alone_counts():
    def made(seed: int, world: int) -> dict[str, Tensor]:
        torch.manual_seed(world)
        before = torch.get_rng_state()
        state = model_with_new_head("efficientnet_lite0", 3, seed=seed).model.state_dict()
        assert torch.equal(torch.get_rng_state(), before)
        return state

    one, same, other = made(0, 1), made(0, 2), made(1, 1)
    assert all(torch.equal(one[name], same[name]) for name in one)
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert different == ["classifier.weight", "classifier.bias"]
    random = []
    for world in (1, 2):
        torch.manual_seed(world)
        random.append(hash_of_model_weights(model_with_new_head("squeezenet1_1", 3, pretrained=False).model))
    assert random[0] == random[1]


def test_files_are_adapted_too(tmp_path):
    first = model_with_new_head("squeezenet1_1", 3, pretrained=False, seed=5)
    size = first.preprocessing.with_size(96)
    path = tmp_path / "a.pth"
    save_checkpoint(path, first.model, first.architecture, ["a", "b", "c"], size)
    second = model_with_new_head(str(path), 4)
    assert second.architecture == "squeezenet1_1" and second.preprocessing == size
    Path(f"{path}.json").unlink()
    third = model_with_new_head(str(path), 4, arch="squeezenet1_1")
    assert third.architecture == "squeezenet1_1" and third.preprocessing == first.preprocessing
    assert hash_of_model_weights(third.model) == hash_of_model_weights(second.model)
    for name, tensor in first.model.state_dict().items():
        assert name.startswith("classifier.1.") or torch.equal(tensor, second.model.state_dict()[name])
    assert second.model.state_dict()["classifier.1.weight"].shape == (4, 512, 1, 1)


def test_one_class_is_no_choice():
    assert message(model_with_new_head, "vgg19", 1) == (
        "vgg19 cannot decide between 1 classes: at least 2 are expected."
    )
