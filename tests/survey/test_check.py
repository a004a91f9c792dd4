"""`lrp models --check`: what it measures, how a run is kept and taken up again, the page it writes; and CI's sample."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import torchvision
import torchvision.models as tv
from torch import nn
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

import lrp
from lrp.cli import main
from lrp.engine.graph.outputs import logits_among
from lrp.survey import architectures, build, check, commit, hugging_face, page, run
from lrp.survey.check import Measurement, check_model

# One per kind of architecture; with a size where the model takes another than its own.
SAMPLE = (
    ("squeezenet1_1", 64), ("resnet18", 64), ("googlenet", 64), ("mnasnet0_5", 64), ("mobilenet_v3_small", 64),
    ("shufflenet_v2_x0_5", 64), ("regnet_y_400mf", 64),
)  # fmt: skip


def swin(**options: Any) -> nn.Module:
    return tv.SwinTransformer([4, 4], 24, [2, 1], [2, 4], [7, 7], **options)


def efficientnet() -> nn.Module:
    stages = [(1, 3, 1, 32, 16, 1), (6, 3, 2, 16, 24, 2), (6, 5, 2, 24, 40, 1), (6, 3, 1, 40, 48, 1)]
    return tv.EfficientNet([MBConvConfig(*stage) for stage in stages], 0.2, last_channel=96)


def densenet() -> nn.Module:
    return tv.DenseNet(16, (2, 2, 2), 32)


# And of kinds that repeat one block dozens of times, nets of fewer blocks: `lrp models --check` measures the whole ones.
SHALLOW: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "densenet": (densenet, 64),
    "efficientnet": (efficientnet, 64),
    "convnext": (lambda: tv.ConvNeXt([CNBlockConfig(32, 64, 2), CNBlockConfig(64, None, 2)]), 64),
    "swin": (swin, 64),
    "swin_v2": (lambda: swin(block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2), 64),
    "vit": (lambda: tv.VisionTransformer(64, 16, 3, 4, 64, 128), 64),
    "maxvit": (lambda: tv.MaxVit((64, 64), 16, 4, [16, 32], [1, 2], 8, 0.0), 64),
}
OF_TIMM = {
    "timm:deit_tiny_patch16_224": 224, "timm:mobilevit_xxs": 64, "timm:sequencer2d_s": 14,
    "timm:xcit_nano_12_p8_224": 64, "timm:poolformerv2_s12": 64, "timm:gmlp_ti16_224": 224,
    "timm:cait_xxs24_224": 224, "timm:edgenext_xx_small": 64, "timm:lambda_resnet26rpt_256": 256,
    "timm:focalnet_tiny_srf": 64,
}  # fmt: skip


# ---------------------------------------------------------------- the sample


def expect_explained(result: Measurement) -> None:
    assert result.reason == ""
    assert result.logit_error <= 1e-4
    assert result.dtype == "float64" and result.closing_error <= 1e-9
    assert result.finite and abs(result.reached) >= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), SAMPLE, ids=[name for name, _ in SAMPLE])
def test_the_sample_is_explained_as_it_should_be(name, size):
    expect_explained(check.check(name, size=size, repeats=0))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SHALLOW, *OF_TIMM])
def test_shallow_nets_of_other_kinds_are_too(name):
    def make() -> tuple[nn.Module, torch.Tensor]:
        if name in SHALLOW:
            maker, size = SHALLOW[name]
            model = maker()
        else:
            model, size = timm.create_model(name.removeprefix("timm:")), OF_TIMM[name]
            for module in model.modules():
                if isinstance(blocks := getattr(module, "blocks", None), nn.Sequential | nn.ModuleList):
                    module.blocks = blocks[:2]
        return build.set_check_weights(model.eval(), torch.randn(8, 3, size, size)), torch.randn(
            1, 3, size, size
        )

    expect_explained(check_model(name, make, repeats=0))


def fresh(day: date) -> list[str]:
    """Two others that take seconds, another two every day."""
    sample = {name for name, _ in SAMPLE} | set(OF_TIMM)
    small = [
        name for name in architectures.surveyed_architectures()
        if name not in sample and build._published(name) < 50e6 and name not in SLOW
        and architectures.group_of(name).prefix in ("", "timm:", "hf:")
    ]  # fmt: skip
    return random.Random(day.toordinal()).sample(small, 2)


SLOW = ("timm:nasnetalarge", "timm:pnasnet5large", "timm:naflexvit_base_patch16_parfac_gap")


@pytest.mark.slow
@pytest.mark.parametrize("place", range(2))
def test_a_fresh_sample_as_information(place):
    name = fresh(date.today())[place]
    result = check.check(name, repeats=0)
    if not result.ok:
        pytest.xfail(f"{name}: {result.reason}")


# ---------------------------------------------------------------- identities


def vgg() -> nn.Module:
    features = torchvision.models.vgg11_bn(weights=None).features
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


SMALLER = {"vgg": vgg, "densenet": densenet, "efficientnet": efficientnet}


def in_float64(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    if name in SMALLER:
        model, x = (
            build.set_check_weights(SMALLER[name](), torch.randn(8, 3, 64, 64)),
            torch.randn(1, 3, 64, 64),
        )
    else:
        model, x = build.model_to_check(name, 64)
    return model.double(), x.double()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "vgg", "squeezenet1_1", "regnet_y_400mf"])
def test_without_biases_the_relevance_is_the_logit(name):
    model, x = in_float64(name)
    for preset in ("epsilon_plus", "epsilon_plus_flat", "epsilon_gamma_box", "excitation_backprop"):
        composite = lrp.preset(preset, bias="ignore", epsilon=0.0, low=-4.0, high=4.0)
        e = lrp.Explainer(model, composite)(x)
        logit = e.logits[0, e.target[0]]
        assert abs(e.relevance.sum() - logit) <= 1e-4 * abs(logit), preset


@pytest.mark.slow
@pytest.mark.parametrize("name", ["densenet", "efficientnet"])
def test_what_is_lost_otherwise_is_dropped_and_said(name):
    """DenseNet's norms stand before the activation and cannot be folded: where their input is zero, or of the wrong
    sign for z⁺, all of the output is bias. Depthwise convolutions have one input channel: likewise."""
    model, x = in_float64(name)
    for preset in ("epsilon_plus", "epsilon_gamma_box"):
        composite = lrp.preset(preset, bias="ignore", epsilon=0.0, low=-4.0, high=4.0)
        e = lrp.Explainer(model, composite)(x)
        logit = e.logits[0, e.target[0]]
        assert abs(e.relevance.sum() + e.ledger.totals["dropped"][0] - logit) <= 1e-4 * abs(logit), preset
        assert (e.ledger.totals["bias"] == 0).all()


# ---------------------------------------------------------------- measuring one


def tiny(*last: nn.Module) -> tuple[nn.Module, torch.Tensor]:
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5), *last)
    return nn.Sequential(*layers).eval(), torch.randn(1, 3, 8, 8)


def test_a_tiny_model_measured():
    result = check_model("tiny", tiny)
    assert result.ok and result.name == "tiny" and result.family == "torchvision"
    assert result.parameters == sum(p.numel() for p in tiny()[0].parameters())
    assert result.shape == (3, 8, 8) and result.dtype == "float64" and result.free_batch
    assert result.preset == "epsilon_gamma_wsquare"
    assert (result.operations, result.without_evidence) == (4, 0)  # the norm is folded
    assert result.logit_error < 1e-5 and result.closing_error < 1e-12 and result.worst and result.finite
    assert abs(result.reached + result.bias + result.epsilon + result.dropped - 1) < 1e-9
    assert result.amplification >= 1 and result.times > 0 and result.gradient > 0 and result.seconds > 0
    assert result.versions == check.versions_at_check("tiny")
    assert list(result.versions) == ["lrp", "torch", "torchvision", "timm"]
    assert result.commit == commit.engine_commit()
    assert result.date == date.today().isoformat()
    assert Measurement.from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False))) == result


def test_measuring_twice_gives_the_same_and_leaves_the_random_state():
    state = torch.get_rng_state()
    one, two = (check_model("tiny", tiny, repeats=0) for _ in range(2))
    assert replace(one, seconds=None) == replace(two, seconds=None)
    assert one.times is None and one.gradient is None
    assert torch.equal(torch.get_rng_state(), state)


class Branching(nn.Module):
    def forward(self, x):
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


class Total(nn.Module):
    def forward(self, x):
        return x.sum()


class Untouched(nn.Module):
    """Its logits hang on the image by a hair."""

    def forward(self, x):
        return x.flatten(1)[:, :5] * 1e-9 + torch.ones(5)


def failing() -> tuple[nn.Module, torch.Tensor]:
    raise MemoryError("no room for [3, 4]\nand more")


def without_words() -> tuple[nn.Module, torch.Tensor]:
    raise AssertionError


IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (failing, "MemoryError while it was built: no room for [3, 4] and more"),
        (without_words, "AssertionError while it was built"),
        (lambda: (Total(), IMAGE), "CaptureError: the model returns a tensor of shape []; logits [N, K] or [N, K, *space] are expected."),
        (lambda: (Untouched(), IMAGE), re.compile(r"not tested: \S+e-\d+ of the start reached the input \(from 1e-06 on\)")),
        (lambda: tiny(Branching()), re.compile(r"CaptureError: Sequential could not be captured .* may depend on pixel values\)\.")),
        (lambda: tiny(Bessel()), re.compile(r"UnsupportedError: no rule for 1 of 5 operations: 5 special_bessel_j0 \[N, 5\] test_check.py:\d+ Give .*")),
    ],
)  # fmt: skip
def test_what_fails_is_a_reason_on_one_line(make, reason):
    result = check_model("tiny", make, repeats=0)
    assert not result.ok and "\n" not in result.reason
    assert reason.fullmatch(result.reason) if isinstance(reason, re.Pattern) else result.reason == reason
    json.dumps(result.to_dict(), allow_nan=False)


GOOD = {
    "finite": True, "logit_error": 1e-6, "closing_error": 1e-12, "worst": "fc linear", "dtype": "float64",
    "reached": -0.5, "amplification": 4.2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({}, []),
        ({"dtype": "float32", "closing_error": 1e-5}, []),
        (
            {"finite": False, "amplification": float("inf"), "closing_error": float("nan")},
            ["not finite: relevance or logits hold NaN or infinite values"],
        ),
        (
            {"finite": False, "amplification": 5.4e51},
            [
                "not finite: relevance or logits hold NaN or infinite values in float32; in float64 the largest "
                "Σ|R| of a node is 5e+51 × start"
            ],
        ),
        ({"logit_error": 2e-4}, ["logits differ from the model's by 2.0e-04 of the largest (limit 1e-04)"]),
        (
            {"closing_error": 2e-9},
            [
                "fc linear does not close: 2.0e-09 of the relevance entering it is unexplained in float64 "
                "(limit 1e-09)"
            ],
        ),
        ({"reached": -2e-7}, ["not tested: -2.0e-07 of the start reached the input (from 1e-06 on)"]),
    ],
)
def test_what_is_asked_of_every_model(change, missed):
    assert check._missed(GOOD | change) == missed


def test_no_number_passes_for_a_good_one():
    nothing = dict.fromkeys(("logit_error", "closing_error", "reached"), float("nan"))
    assert len(check._missed(GOOD | nothing)) == 3


def test_an_unknown_model_is_a_reason_too():
    assert check.check("vg19").reason.startswith("ModelError: no model 'vg19': did you mean vgg19")


def test_realistic_weights():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.Flatten(), nn.Linear(64, 8), nn.LayerNorm(8)
    )
    nn.init.zeros_(model[3].weight)
    nn.init.constant_(model[3].bias, 1e-6)
    before = model[0].weight.clone()
    assert build.set_check_weights(model, torch.randn(8, 3, 3, 3)) is model
    norm, linear = model[1], model[3]
    assert not any(m.training for m in model.modules())
    assert torch.equal(model[0].weight, before)  # what has been drawn stays
    assert 0 < (norm.weight < 0).sum() < 32 and norm.momentum == 0.1
    assert norm.num_batches_tracked == 1 and (norm.running_mean != 0).all()
    assert float(linear.weight.detach().std()) == pytest.approx(
        64**-0.5, rel=0.1
    )  # one over the root of its inputs
    assert len(linear.bias.unique()) == 8
    assert (model[4].weight == 1).all() and len(model[4].bias.unique()) == 8


def test_torchvisions_largest_take_224_pixels(monkeypatch):
    monkeypatch.setattr(build, "LARGE", 1_000)
    assert build.model_to_check("squeezenet1_1")[1].shape == (1, 3, 224, 224)
    model, x = build.model_to_check("efficientnet_b1")  # its own: 240
    assert x.shape == (1, 3, 224, 224)
    with torch.no_grad():
        assert model(x).shape == (1, 1000)


# ---------------------------------------------------------------- video, segmentation, Hugging Face


@pytest.mark.parametrize("name", ["hf:vit", "hf:poolformer"])
def test_small_families_of_hugging_face_are_explained(name):
    pytest.importorskip("transformers")
    result = check.check(name, repeats=1)
    expect_explained(result)
    assert result.family == name.removeprefix("hf:") and result.times > 0
    assert list(result.versions) == ["lrp", "torch", "torchvision", "timm", "transformers"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["hf:pp_lcnet", "hf:swinv2", "video:mc3_18", "segmentation:lraspp_mobilenet_v3_large"]
)
def test_a_sample_of_the_other_groups_is_explained(name):
    if name.startswith("hf:"):
        pytest.importorskip("transformers")
    expect_explained(check.check(name, repeats=0))


@pytest.mark.parametrize("family", hugging_face.HUGGING_FACE)
def test_every_small_configuration_builds_a_classifier_that_sees_its_image(family):
    pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, x = build.model_to_check(f"hf:{family}")
    assert not model.training and sum(p.numel() for p in model.parameters()) < 1_000_000
    with torch.no_grad():
        one, other = (logits_among(model(image), None) for image in (x, torch.randn_like(x)))
    assert (
        one.shape == (1, 10) and one.isfinite().all() and (one - other).abs().max() > 1e-3 * one.abs().max()
    )


def test_a_family_of_newer_transformers(monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.setitem(hugging_face.HUGGING_FACE, "of_tomorrow", (32, {}))
    assert check.check("hf:of_tomorrow").reason == (
        "ModelError: hf:of_tomorrow is an image classifier of newer transformers than "
        f"{transformers.__version__}, which is installed: update it."
    )


def test_a_segmentation_net_is_explained_by_its_averaged_scores():
    class Scores(nn.Module):
        def forward(self, x):
            return {"out": x[:, :2] * 2, "aux": x}

    x = torch.arange(12.0).reshape(1, 3, 2, 2)
    assert build.PooledSegmentation(Scores())(x).tolist() == [[3.0, 11.0]]  # twice the means of 0..3 and 4..7


@pytest.mark.parametrize(("name", "shape"), [
    ("quantizable:resnet18", (3, 96, 96)), ("video:r3d_18", (3, 8, 64, 64)), ("video:swin3d_t", (3, 8, 64, 64)),
    ("segmentation:lraspp_mobilenet_v3_large", (3, 128, 128)),
])  # fmt: skip
def test_models_that_are_no_plain_classifiers_are_built_with_noise_that_fits(name, shape, monkeypatch):
    monkeypatch.setattr(build, "set_check_weights", lambda model, x: model)  # takes seconds
    model, x = build.model_to_check(name)
    assert not model.training and x.shape == (1, *shape)
    with torch.no_grad():
        logits = model(x)
    assert logits.shape == (1, {"v": 400, "s": 21, "q": 1000}[name[0]]) and logits.isfinite().all()


def test_a_model_that_a_group_does_not_have():
    assert check.check("segmentation:fcn").reason == (
        "ModelError: no model 'segmentation:fcn': `lrp models --check` knows "
        "segmentation:deeplabv3_mobilenet_v3_large, segmentation:deeplabv3_resnet101, "
        "segmentation:deeplabv3_resnet50, segmentation:fcn_resnet101, segmentation:fcn_resnet50, "
        "segmentation:lraspp_mobilenet_v3_large."
    )


# ---------------------------------------------------------------- the list


def test_every_family_of_the_installed_timm_is_listed():
    assert architectures.unlisted_families()["timm"] == [], (
        "choose with lrp.survey.architectures.smallest_of_family and add to TIMM, or to LEFT_OUT with the reason"
    )


def test_every_family_of_the_installed_transformers_is_listed():
    pytest.importorskip("transformers")
    assert architectures.unlisted_families()["transformers"] == [], (
        "add to HUGGING_FACE with a small configuration, or to LEFT_OUT_HUGGING_FACE with the reason"
    )


def test_what_a_user_registers_with_timm_is_no_family_of_timm(monkeypatch):
    from timm.models import _registry

    for name in ("mine", "new_in_timm"):
        monkeypatch.setitem(_registry._module_to_models, name, {"a_net"})
    monkeypatch.setattr(
        architectures.pkgutil,
        "iter_modules",
        lambda paths: [SimpleNamespace(name=n) for n in ("new_in_timm", "vgg")],
    )
    assert architectures.unlisted_families()["timm"] == ["new_in_timm"]


def test_the_list():
    import timm

    assert [len(group.names) for group in architectures.GROUPS] == [80, 94, 9, 6, 12, 37]
    assert (
        len(architectures.surveyed_architectures()) == len(set(architectures.surveyed_architectures())) == 238
    )
    for family, name in architectures.TIMM.items():
        assert name in timm.list_models(module=family) and not name.startswith("test_")
        assert architectures.family_of(f"timm:{name}") == family
    assert architectures.family_of("resnet50") == "torchvision"
    assert (
        architectures.family_of("video:r3d_18") == "torchvision"
        and architectures.family_of("hf:vit") == "vit"
    )
    assert architectures.surveyed_architectures("resnet50") == [
        "resnet50", "wide_resnet50_2", "segmentation:deeplabv3_resnet50", "segmentation:fcn_resnet50",
        "quantizable:resnet50",
    ]  # fmt: skip
    assert architectures.surveyed_architectures("video:")[:2] == ["video:mc3_18", "video:mvit_v1_b"]
    assert architectures.smallest_of_family("levit") == architectures.TIMM["levit"]
    assert (
        architectures.smallest_of_family("deepseek_vit") is None and "deepseek_vit" in architectures.LEFT_OUT
    )


# ---------------------------------------------------------------- many

SHORT = ("alexnet", "resnet18", "vgg11", "timm:levit_128s")
ENGINE = "0a1b2c3d"


def result(name: str, reason: str = "", **facts) -> Measurement:
    known = {
        "parameters": 10**6,
        "shape": (3, 64, 64),
        "logit_error": 1e-6,
        "closing_error": 1e-12,
        "reached": 0.5,
    }
    return Measurement(name, architectures.family_of(name), reason, **{
        **known, "operations": 7, "finite": True, "versions": check.versions_at_check(name), "date": "2026-01-02",
        "commit": ENGINE, **facts,
    })  # fmt: skip


class Instant:
    """A worker that has the result at once."""

    begun: list[str]
    reasons: dict[str, str]

    def __init__(self, name, threads):
        Instant.begun.append(name)
        self.name = name

    def result(self):
        return result(self.name, Instant.reasons.get(self.name, ""))

    def stop(self):
        Instant.begun.append(f"stopped {self.name}")


@pytest.fixture
def instant(monkeypatch):
    Instant.begun, Instant.reasons = [], {}
    monkeypatch.setattr(run, "Worker", Instant)
    monkeypatch.setattr(run, "engine_commit", lambda: ENGINE)
    return Instant


def test_an_interrupted_run_goes_on_from_there(instant, tmp_path):
    going = run.survey(SHORT, tmp_path)
    assert [next(going)[0].name, next(going)[0].name] == ["alexnet", "resnet18"]
    going.close()
    assert (
        list(run.load_earlier_run(tmp_path)) == ["alexnet", "resnet18"]
        and not (tmp_path / "models.md").exists()
    )
    instant.begun.clear()
    again = [(r.name, kept) for r, kept in run.survey(SHORT, tmp_path)]
    assert again == [("alexnet", True), ("resnet18", True), ("vgg11", False), ("timm:levit_128s", False)]
    assert instant.begun == ["vgg11", "timm:levit_128s"]
    assert list(run.load_earlier_run(tmp_path)) == list(SHORT) and (tmp_path / "models.md").is_file()
    assert not list(tmp_path.glob("*.part"))


def test_what_runs_is_stopped_when_the_run_is(instant, tmp_path, monkeypatch):
    monkeypatch.setattr(Instant, "result", lambda self: result(self.name) if self.name == "alexnet" else None)
    going = run.survey(SHORT, tmp_path, jobs=3)
    next(going)
    going.close()
    assert instant.begun == ["alexnet", "resnet18", "vgg11", "stopped resnet18", "stopped vgg11"]


def test_overwrite_other_versions_and_dead_workers_are_measured_again(instant, tmp_path):
    list(run.survey(SHORT, tmp_path))
    assert sum(kept for _, kept in run.survey(SHORT, tmp_path, overwrite=True)) == 0
    assert sum(kept for _, kept in run.survey(SHORT, tmp_path)) == 4
    content = json.loads((tmp_path / "models.json").read_text())
    content["results"][0]["versions"]["torch"] = "1.0"
    content["results"][1]["versions"] = None
    (tmp_path / "models.json").write_text(json.dumps(content))
    again = [r.name for r, kept in run.survey(SHORT, tmp_path, keep=True) if not kept]
    assert again == ["resnet18"]  # what died has no result to keep
    assert [r.name for r, kept in run.survey(SHORT, tmp_path) if not kept] == ["alexnet"]


def measured_now(tmp_path, names=SHORT, **how) -> list[str]:
    return [r.name for r, kept in run.survey(names, tmp_path, **how) if not kept]


@pytest.mark.parametrize("before", [None, "", "00000000", "0a1b2c3d+"])
def test_results_of_another_engine_are_measured_again_unless_kept(instant, tmp_path, before):
    list(run.survey(SHORT, tmp_path))
    content = json.loads((tmp_path / "models.json").read_text())
    content["results"][2]["commit"] = before
    if before is None:  # as it was written before commits were recorded
        del content["results"][2]["commit"]
    (tmp_path / "models.json").write_text(json.dumps(content))
    assert measured_now(tmp_path, keep=True) == []
    assert run.load_earlier_run(tmp_path)["vgg11"].commit == before
    assert measured_now(tmp_path) == ["vgg11"] and measured_now(tmp_path) == []
    assert run.load_earlier_run(tmp_path)["vgg11"].commit == ENGINE


def test_what_an_uncommitted_engine_measured_is_never_up_to_date(instant, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "engine_commit", lambda: "0a1b2c3d+")
    monkeypatch.setattr(Instant, "result", lambda self: result(self.name, commit="0a1b2c3d+"))
    assert measured_now(tmp_path) == measured_now(tmp_path) == list(SHORT)
    assert measured_now(tmp_path, keep=True) == []


def test_a_part_leaves_the_other_results_as_they_are(instant, tmp_path):
    list(run.survey(["resnet18", "hf:vit"], tmp_path))
    before = json.loads((tmp_path / "models.json").read_text())["results"]
    assert measured_now(tmp_path, ["video:mc3_18", "alexnet"]) == ["video:mc3_18", "alexnet"]
    after = {entry["name"]: entry for entry in json.loads((tmp_path / "models.json").read_text())["results"]}
    assert list(after) == ["alexnet", "resnet18", "video:mc3_18", "hf:vit"]
    assert [after["resnet18"], after["hf:vit"]] == before


def test_the_engines_commit(tmp_path, monkeypatch):
    def git(*arguments: str) -> str:
        own = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        done = subprocess.run(
            ["git", "-C", tmp_path, *own, *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    now = commit.engine_commit.__wrapped__
    engine = tmp_path / "src" / "engine"
    engine.mkdir(parents=True)
    (engine / "rules.py").write_text("1")
    monkeypatch.setattr(commit, "ENGINE", engine)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert now() == ""  # no checkout
    git("init", "--quiet")
    assert now() == ""  # a checkout that does not hold the engine
    git("add", ".")
    git("commit", "--quiet", "--message", "engine")
    first = git("log", "-1", "--format=%H")
    assert now() == first[:8]
    (tmp_path / "README").write_text("2")
    git("add", ".")
    git("commit", "--quiet", "--message", "a document")
    assert now() == first[:8]
    (engine / "rules.py").write_text("3")
    assert now() == first[:8] + "+"
    git("commit", "--quiet", "--all", "--message", "engine again")
    assert now() == git("log", "-1", "--format=%H")[:8] != first[:8]
    (engine / "new.py").write_text("4")
    assert now().endswith("+")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert now() == ""  # no git


def test_a_worker_measures_in_a_process_of_its_own(tmp_path):
    work = run.Worker("squeezenet1_1", 1)
    while (found := work.result()) is None:
        time.sleep(0.05)
    assert found.ok and found.name == "squeezenet1_1" and found.threads == 1 and found.times > 0
    assert not work.result_file.exists()


def test_a_worker_that_dies_is_a_miss_with_the_cause(monkeypatch):
    work = run.Worker("resnet18", 1)
    os.kill(work.process.pid, signal.SIGKILL)
    work.process.wait()
    found = work.result()
    assert found.versions is None  # so that it is tried again
    assert (found.name, found.family) == ("resnet18", "torchvision")
    assert (
        found.reason
        == "its process was ended by signal 9: the memory did not suffice, probably; try --jobs 1"
    )
    monkeypatch.setattr(run, "HOURS", 0.0)
    late = run.Worker("resnet18", 1)
    assert late.result().reason == "took longer than 0 h: it was ended"
    assert late.process.poll() is not None
    monkeypatch.undo()
    monkeypatch.setattr(run.sys, "executable", "/bin/false")
    fails = run.Worker("resnet18", 1)
    fails.process.wait()
    assert fails.result().reason == "its process ended with exit code 1: it said nothing"


@pytest.mark.parametrize(
    ("content", "reason"),
    [("[]", "TypeError: list indices must be integers or slices, not str"), ('{"results": [{}]}', "KeyError: 'name'")],
)  # fmt: skip
def test_a_file_of_something_else_stays(tmp_path, content, reason):
    (tmp_path / "models.json").write_text(content)
    with pytest.raises(lrp.ModelError) as error:
        list(run.survey(SHORT, tmp_path))
    assert str(error.value) == (
        f"{tmp_path}/models.json holds no results of `lrp models --check` ({reason}): move it away, or name another "
        "folder with --output."
    )
    assert (tmp_path / "models.json").read_text() == content


def test_a_folder_that_cannot_be_written(instant, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(lrp.ModelError) as error:
        list(run.survey(SHORT, tmp_path / "file" / "docs"))
    assert str(error.value) == f"cannot read {tmp_path}/file/docs/models.json: Not a directory."
    with pytest.raises(lrp.ModelError) as error:
        list(run.survey(SHORT, tmp_path, jobs=0))
    assert str(error.value) == "jobs=0: at least one model is measured at a time."


def test_goals():
    fine = {name: result(name) for name in architectures.surveyed_architectures()}

    def met(*missed: str, everything: bool = True) -> bool:
        results = [replace(r, reason="missed") if name in missed else r for name, r in fine.items()]
        return run.run_meets_goal(results, everything)

    timm, small = architectures.surveyed_architectures("timm:"), architectures.surveyed_architectures("hf:")
    assert met() and met(everything=False)
    assert met(*timm[:4], *small[:7]) and not met(*timm[:5]) and not met(*small[:8])
    assert not met("alexnet") and not met("video:s3d") and not met("quantizable:resnet18")
    assert not met("timm:levit_128s", everything=False)
    few = [fine["alexnet"], fine["hf:vit"], replace(fine["video:s3d"], reason="missed"), fine["video:mc3_18"]]
    assert page.survey_summary(few) == (
        "1 of 1 torchvision classifiers, 1 of 2 video classifiers, 1 of 1 Hugging Face families: logits are the "
        "model's, every node closes, all is finite, and the input is reached."
    )


def test_the_page_is_well_formed_and_says_every_miss():
    reason = "relevance |R| does not close\nat a * b <i>"
    text = page.page_as_markdown([
        result("timm:levit_128s", times=2.345, dtype="float32", without_evidence=3),
        result("resnet18", reason, logit_error=None, finite=None),
        result("alexnet", times=1.0, commit=None),
        result("video:mc3_18", shape=(3, 8, 64, 64), commit=""),
        result("hf:vit", versions=check.versions_at_check("hf:vit") | {"transformers": "5.4.3"}),
    ])  # fmt: skip
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) == 6
    for table in tables:
        lines = table.splitlines()
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1, table
        assert set(lines[1]) == set("| -") and all(line.endswith(" |") for line in lines)
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings == [
        "What the columns mean", "What this can and cannot show", "Misses", "torchvision", "timm, one model per family",
        "torchvision, video", "torchvision, segmentation", "torchvision, quantisable",
        "Hugging Face, one small model per family",
    ]  # fmt: skip
    assert r"| resnet18 | relevance \|R\| does not close at a \* b \<i> | 0a1b2c3d |" in text
    assert (
        text.index("| alexnet |") < text.index("| resnet18 ✗ |") < text.index("| levit | timm:levit_128s |")
    )
    assert "| 1e-12\\* | yes | 0.5 |" in text and "| 2.3× |" in text
    assert (
        "Not measured yet: 78 torchvision classifiers, 93 timm families, 8 video classifiers, 6 segmentation nets, "
        "12 quantisable nets, 36 Hugging Face families."
    ) in text
    assert (
        "**1 of 2 torchvision classifiers, 1 of 1 timm families, 1 of 1 video classifiers, 1 of 1 Hug" in text
    )
    assert "| 1.0× | ? |" in text and "| video:mc3_18 | 1.0 | 8×64×64 |" in text
    assert "transformers 5.4.3. Measured" in text
    assert "Engine: 3 rows at 0a1b2c3d, 1 row before commits were recorded, 1 row outside a checkout." in text
    assert "of transformers dinat (needs natten, a package of GPU kernels), imagegpt" in text
    assert "vgg (the smallest, vgg11, has 132.9 M parameters" in text
    assert "Measured 2026-01-02, on a CPU" in text and f"torch {torch.__version__.split('+')[0]}" in text
    assert "Nothing was measured" in page.page_as_markdown([])


def test_the_two_corners_of_the_tables_are_explained_where_they_were_measured():
    shares = {"reached": 4.66e-11, "bias": 0.3254, "dropped": 0.6745, "amplification": 31.37}
    one = result("timm:convmixer_768_32", "not tested", **shares)
    text = page.page_as_markdown([one])
    assert "## Two corners of the tables" in text and "NextViT" not in text
    assert "4.7e-11 of the start reaches the image, 0.674 is dropped and 0.325 goes to biases." in text
    other = result("timm:nextvit_small", dropped=0.6184, amplification=91.9)
    text = page.page_as_markdown([one, other])
    assert (
        "drops the second largest share, 0.618, and amplifies most: Σ|R| grows to 91.9 times the start."
        in text
    )
    assert "`python tools/survey_corners.py timm:convmixer_768_32 timm:nextvit_small`" in text
    crashed = Measurement("timm:nextvit_small", "nextvit", "its process died")
    assert "corners" not in page.page_as_markdown([crashed])


@pytest.mark.parametrize(("scale", "shift", "input", "bias", "dropped"), [
    (1.0, 0.5, 2 / 3, 1 / 3, 0.0), (1.0, -0.5, 1.0, 0.0, 0.0), (-1.0, 0.5, 0.0, 1.0, 0.0), (-1.0, -0.5, 0.0, 0.0, 1.0),
])  # fmt: skip
def test_what_the_page_says_of_a_norm_after_a_relu(scale, shift, input, bias, dropped):
    norm = nn.BatchNorm1d(1, eps=0.0)
    nn.init.constant_(norm.weight, scale)
    nn.init.constant_(norm.bias, shift)
    model = nn.Sequential(nn.ReLU(), norm).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nothing reaches the input of two of them
        e = lrp.Explainer(model, "epsilon_plus", dtype=torch.float64)(torch.ones(1, 1), 0)
    shares = [float(e.health.shares[part][0]) for part in ("input", "bias", "dropped")]
    assert shares == pytest.approx([input, bias, dropped], abs=1e-5)


# ---------------------------------------------------------------- the command


def test_the_command_prints_a_line_per_model_and_a_summary(instant, tmp_path, capsys):
    instant.reasons = {"wide_resnet101_2": "CaptureError: no"}
    assert main(["models", "wide", "--check", "--output", str(tmp_path), "--jobs", "2"]) == 3
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.splitlines() == [
        "miss  wide_resnet101_2: CaptureError: no",
        "ok    wide_resnet50_2: 7 operations, logits 1e-06, worst node 1e-12, reached 0.5 of the start",
        "1 of 2 torchvision classifiers: logits are the model's, every node closes, all is finite, and the input is "
        "reached.",
        "missed: wide_resnet101_2: CaptureError: no",
        f"-> {tmp_path}/models.md, {tmp_path}/models.json",
    ]  # fmt: skip
    instant.reasons = {}
    assert main(["models", "wide", "--check", "--output", str(tmp_path), "--overwrite"]) == 0
    capsys.readouterr()
    assert main(["models", "wide", "--check", "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("kept  wide_resnet101_2: 7 operations")


def test_a_part_that_no_name_contains(capsys, tmp_path):
    assert main(["models", "resnet5O", "--check", "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        "lrp: --check measures 238 models, and none of their names contains 'resnet5O': did you mean resnet50, "
        "resnet152, resnet34? Without a name, all are measured.\n"
    )
    assert not list(tmp_path.iterdir())


def test_options_of_the_check_alone_are_usage_errors(capsys):
    for option in ("--overwrite", "--keep"):
        assert main(["models", option]) == 2
        said = " ".join(capsys.readouterr().err.replace("│", " ").split())
        assert "--jobs, --output, --overwrite and --keep belong to --check." in said
    assert main(["models", "--check", "--overwrite", "--keep"]) == 2
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "--overwrite measures everything again, --keep nothing: give one of them." in said


def test_what_is_left_from_a_kept_result_is_said_once(instant, tmp_path, capsys):
    """--keep: a result of an older engine stays, and the page says with which it was measured."""
    part = ["models", "wide", "--check", "--output", str(tmp_path)]
    assert main(part) == 0
    stored = json.loads((tmp_path / "models.json").read_text())
    stored["results"][0]["commit"] = "00000000"
    (tmp_path / "models.json").write_text(json.dumps(stored))
    capsys.readouterr()
    assert main([*part, "--keep"]) == 0
    assert capsys.readouterr().out.count("kept  ") == 2
    assert "Engine: 1 row at 00000000, 1 row at 0a1b2c3d." in (tmp_path / "models.md").read_text()


def test_without_transformers_the_others_are_measured(instant, tmp_path, monkeypatch, capsys):
    for module in (architectures, hugging_face):
        monkeypatch.setattr(module, "has_transformers", lambda: False)
    missing = (
        "is built by transformers, which is not installed: install it with `pip install 'transformers>=5'`."
    )
    assert check.check("hf:vit").reason == f"ModelError: hf:vit {missing}"
    assert main(["models", "alexnet", "--check", "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().err == ""
    assert main(["models", "pvt", "--check", "--output", str(tmp_path)]) == 0
    assert instant.begun == ["alexnet", "timm:pvt_v2_b0"]
    missing = missing.replace("is built", "models are built")
    assert capsys.readouterr().err == f"lrp: 2 {missing}\n"
    assert main(["models", "hf:", "--check", "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"lrp: 37 {missing}\n"
