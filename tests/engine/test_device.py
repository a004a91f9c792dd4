"""What a GPU would run, tested where there is none: on device "meta", where a look at a number is an error."""

import dataclasses

import pytest
import timm
import torch
import torchvision
from torch import nn

import lrp

BOX = {"low": -2.0, "high": 2.0}
PRESETS = ["epsilon_plus_flat", "epsilon_gamma_box", "epsilon_alpha2_beta1", "epsilon"]
MODELS = {
    "vgg11": PRESETS,
    "resnet18": PRESETS,
    "mobilenet_v3_small": PRESETS[:2],
    "shufflenet_v2_x0_5": PRESETS[:1],
    "timm:vit_tiny_patch16_224": ["cp_lrp", "attnlrp"],
    "timm:test_convnext": PRESETS[:2],
    "timm:efficientnet_lite0": PRESETS[:2],
}
WITHOUT = ("epsilon", "cp_lrp", "attnlrp")  # presets with no product whose terms all have one sign
CASES = [(name, preset) for name, presets in MODELS.items() for preset in presets]


def made(name):
    torch.manual_seed(0)
    if name.startswith("timm:"):
        model = timm.create_model(name.removeprefix("timm:"))
        side = model.pretrained_cfg["input_size"][-1]
    else:
        model, side = torchvision.models.get_model(name, weights=None), 64
    return model.eval(), torch.randn(2, 3, side, side)


@pytest.mark.parametrize(("name", "preset"), CASES)
def test_a_pass_waits_for_nothing_from_the_device(name, preset):
    model, x = made(name)
    prepared = lrp.Explainer(model, lrp.preset(preset, **BOX)).prepare(x)
    classes = prepared.graph.logits.meta["shape"][1]
    seeds = [torch.zeros(*shape, device="meta") for shape in ((2, classes), (2, classes), (2, 1))]
    for low_precision in (False, True):  # exact and mixed
        plan = dataclasses.replace(prepared.builder.speed, data_dependent=False, low_precision=low_precision)
        builder = dataclasses.replace(prepared.builder, speed=plan)
        program = builder.program().module.to("meta")
        assert low_precision == (torch.bfloat16 in [b.dtype for b in program.buffers()]) or preset in WITHOUT
        relevance, logits, start = program(x.to("meta"), *seeds)
        assert relevance.is_meta and relevance.shape == x.shape
        assert logits.shape == start.shape == (2, classes)


def test_a_program_that_looks_at_its_numbers_is_noticed():
    model, x = made("vgg11")
    explainer = lrp.Explainer(model, "epsilon_alpha2_beta1")
    program = explainer.prepare(x).builder.program().module.to("meta")  # a CPU's: it may branch
    seeds = [torch.zeros(*shape, device="meta") for shape in ((2, 1000), (2, 1000), (2, 1))]
    with pytest.raises((NotImplementedError, RuntimeError)):
        program(x.to("meta"), *seeds)


def test_only_a_cpu_branches(monkeypatch):
    model, x = made("vgg11")
    kinds = {}
    for compile in (False, True):
        explainer = lrp.Explainer(model, "epsilon_alpha2_beta1", compile=compile)
        kinds[compile] = explainer.prepare(x).builder.speed.data_dependent
    assert kinds == {False: True, True: False}


def test_convolutions_are_laid_out_channels_last():
    model, x = made("vgg11")
    prepared = lrp.Explainer(model, "epsilon_plus_flat").prepare(x)
    weights = [b for name, b in prepared.plain.module.named_buffers() if "weight" in name and b.dim() == 4]
    assert weights and all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)


def test_a_model_of_dense_layers_has_no_layout():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)).eval()
    x = torch.randn(2, 3, 2, 2)
    assert lrp.explain(model, x, 0, "epsilon").relevance.is_contiguous()
