"""Adapters: nothing at first, only themselves trained, merged without a trace, heard by every
hook.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.common.adapters import METHODS
from fedgraft.common.adapters.attention import open_attention
from fedgraft.common.adapters.targets import (
    count_channels,
    find_blocks,
    find_layers,
    has_channels_last,
    select,
)
from fedgraft.common.backbones.backbone import Backbone, backbone_state, build_network
from fedgraft.common.backbones.family import NetworkShape
from fedgraft.common.errors import UserError
from fedgraft.common.files.tensor_files import fingerprint_of
from fedgraft.common.model.grafted_model import GraftedModel, graft

QUICK = ("cifar-resnet20", "mlp", "resnet18", "mobilenet_v3_small")
HEAVY = ("efficientnet_b0", "convnext_tiny", "vit_b_16", "swin_t", "swin_v2_t")
# of what takes ten seconds and more each, LoRA always, the others in make exhaustive
COMBINED = [
    *((name, method) for name in QUICK for method in METHODS.names),
    *(pytest.param(name, "lora", marks=pytest.mark.slow) for name in HEAVY),
    *(
        pytest.param(name, method, marks=pytest.mark.exhaustive)
        for name in HEAVY
        for method in METHODS.names
        if method != "lora"
    ),
]
Lively = Callable[[str], Backbone]
Inputs = Callable[..., Tensor]


def disturb(model: GraftedModel, scale: float = 0.05) -> GraftedModel:
    """Move every trainable value by about `scale` from where it began, so that adapters do
    something.
    """
    generator = torch.Generator().manual_seed(2)
    model.load_adapter_state(
        {
            k: v + scale * torch.randn(v.shape, generator=generator)
            for k, v in model.adapter_state().items()
        }
    )
    return model


def bare(backbone: Backbone, model: GraftedModel, x: Tensor) -> Tensor:
    """Logits of the untouched backbone under the model's head."""
    return model.net.get_submodule(model.head_name)(backbone.net(x))


@pytest.mark.parametrize(("name", "method"), COMBINED)
class TestEveryMethodOnEveryNetwork:
    def test_nothing_at_first_then_something_then_merged(
        self, name: str, method: str, lively: Lively, inputs: Inputs
    ) -> None:
        """Grafting must not disturb what the backbone learnt, nor merging what the adapters
        learnt.
        """
        backbone, x = lively(name), inputs(name)
        with torch.no_grad():
            model = graft(backbone, method=method, classes=3, rank=4, seed=1)
            reference = bare(backbone, model, x)
            assert reference.std() > 1e-2  # else equality says nothing
            torch.testing.assert_close(model(x), reference, atol=1e-6, rtol=1e-6)

            disturb(model, 0.01)
            moved, merged = model(x), model.merge()
            if method != "head":
                assert (moved - bare(backbone, model, x)).abs().max() > 1e-4
            scale = float(moved.abs().max().clamp(min=1))
            assert (merged(x) - moved).abs().max() <= 1e-5 * scale
            assert torch.equal(model(x), moved)
            exact = disturb(
                model, 0.05
            ).double()  # deep networks amplify float32's rounding; here the algebra shows
            torch.testing.assert_close(
                exact.merge()(x.double()), exact(x.double()), atol=1e-9, rtol=1e-9
            )
        assert not any(m._forward_pre_hooks for m in merged.modules())
        left = [n for n, _ in merged.named_modules() if n.endswith(".adapter")]
        if method == "bottleneck":
            assert left
        elif name == "swin_v2_t" and method in ("bias", "scale-shift"):
            assert left
            assert all(n.endswith(".attn.qkv.adapter") for n in left)
        else:
            assert not left
            assert not [m for m in merged.modules() if type(m).__name__.startswith("Open")]
        assert fingerprint_of(backbone_state(backbone)) == backbone.fingerprint

    def test_only_adapters_and_head_learn(
        self, name: str, method: str, lively: Lively, inputs: Inputs
    ) -> None:
        """A frozen tensor that gets a gradient, or that a step moves, spoils the backbone for
        everybody.
        """
        backbone = lively(name)
        model = graft(backbone, method=method, classes=3, rank=4, seed=1)
        model.train()
        frozen = {k: v.clone() for k, v in model.frozen_state().items()}
        start = model.adapter_state()
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        for _ in range(2):  # the first step moves B off zero, only then A has a gradient
            optimizer.zero_grad()
            F.cross_entropy(model(inputs(name)), torch.tensor([0, 2])).backward()
            for key, p in model.net.named_parameters():
                assert (p.grad is not None) == p.requires_grad, key
            optimizer.step()
        for key, tensor in model.adapter_state().items():
            assert method == "full" or not torch.equal(tensor, start[key]), f"{key} did not move"
        if method == "full":
            assert sum(
                not torch.equal(t, start[k]) for k, t in model.adapter_state().items()
            ) > 0.9 * len(start)
        assert all(torch.equal(tensor, frozen[key]) for key, tensor in model.frozen_state().items())
        if method != "full":
            assert model.frozen_state().keys() == backbone_state(backbone).keys()
            assert model.frozen_fingerprint() == backbone.fingerprint
        assert fingerprint_of(backbone_state(backbone)) == backbone.fingerprint


class TestSizes:
    @pytest.mark.parametrize(
        ("method", "values"),
        [
            ("head", 64 * 2 + 2),
            # conv1: A 8·3·9, B 16·8; per conv of c channels A 8·c·9, B c·8; 130 in the head
            ("lora", 50_778),
            # per block of c channels: down c·8 + 8, up 8·c + c; three blocks of 16, 32 and 64
            ("bottleneck", 3 * (17 * 112 + 24) + 130),
            ("bias", 16 + 6 * 112 + 130),
            ("scale-shift", 2 * (16 + 6 * 112) + 130),
            # the published file's 271,098 values less 650 of its head and 1,376 of BatchNorm's
            # statistics
            ("full", 271_098 - 650 - 2 * 688 + 130),
        ],
    )
    def test_values_that_travel(self, method: str, values: int, lively: Lively) -> None:
        """The sizes of the design, by hand: another placement would change cost and
        comparability.
        """
        model = graft(lively("cifar-resnet20"), method=method, classes=2)
        count = sum(t.numel() for t in model.adapter_state().values())
        assert count == values


class TestLora:
    def test_the_formula_on_every_kind_of_layer(self) -> None:
        """y = W x + α/r · B A x, worked out from the factors: Linear, Conv2d, grouped, depthwise,
        dilated.
        """
        generator = torch.Generator().manual_seed(0)
        for layer in (
            nn.Linear(6, 4),
            nn.Conv2d(6, 4, 3, stride=2, padding=1),
            nn.Conv2d(6, 4, (3, 1), padding="same", dilation=2, bias=False),
            nn.Conv2d(6, 4, 3, groups=2),
            nn.Conv2d(6, 12, 3, groups=6, padding=1, padding_mode="reflect"),
        ):
            backbone = tiny(layer)
            model = disturb(
                graft(backbone, method="lora", classes=2, rank=3, alpha=12.0, targets=("0",)), 0.5
            )
            state = model.adapter_state()
            down, up = state["0.adapter.lora_A.weight"], state["0.adapter.lora_B.weight"]
            groups = getattr(layer, "groups", 1)
            rows = []
            for g in range(groups):  # by hand, one group after the other
                r, o = down.shape[0] // groups, up.shape[0] // groups
                a = down[g * r : (g + 1) * r].flatten(1)
                rows.append(up[g * o : (g + 1) * o].flatten(1) @ a)
            wanted = layer.weight + 4.0 * torch.cat(rows).view_as(layer.weight)
            x = torch.randn(
                2, 6, *([7, 7] if isinstance(layer, nn.Conv2d) else []), generator=generator
            )
            with torch.no_grad():
                before = model.net.get_submodule("0")(x)
                layer.weight.copy_(wanted)
                torch.testing.assert_close(before, layer(x), atol=1e-5, rtol=1e-5)

    def test_rank_in_groups(self, lively: Lively) -> None:
        """A grouped layer's rank is rounded up to whole groups; depthwise layers take part only by
        name.
        """
        net = lively("mobilenet_v3_small")
        auto = graft(net, method="lora", classes=2, rank=4)
        assert not [n for n in auto.adapter_state() if n.startswith("features.1.block.0.0.")]
        named = graft(net, method="lora", classes=2, rank=4, targets=("features.1.block.0.0",))
        assert named.adapter_spec()["features.1.block.0.0.adapter.lora_A.weight"][1] == (
            16,
            1,
            3,
            3,
        )

    @pytest.mark.slow
    def test_output_projection_takes_part_only_by_name(self, lively: Lively) -> None:
        """PEFT adds that update twice: what we save by default must not contain one."""
        where = "encoder.layers.encoder_layer_3.self_attention"
        default = graft(
            lively("vit_b_16"), method="lora", classes=2, targets=(where,)
        ).adapter_state()
        assert [n for n in default if "adapter" in n] == [
            f"{where}.adapter.lora_{x}.weight" for x in "AB"
        ]
        named = graft(
            lively("vit_b_16"), method="lora", classes=2, targets=("*.out_proj",)
        ).adapter_state()
        assert len([n for n in named if "out_proj.adapter" in n]) == 24


def tiny(layer: nn.Module) -> Backbone:
    """A backbone of one layer."""
    from fedgraft.common.inputs.image import Preprocess

    net = nn.Sequential(layer, nn.Flatten(), nn.Identity()).eval().requires_grad_(False)
    return Backbone("tiny", net, "2", 4, Preprocess(), "")


class TestAttention:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["vit_b_16", "swin_t", "swin_v2_t"])
    def test_opened_attention_computes_the_same(
        self, name: str, lively: Lively, inputs: Inputs
    ) -> None:
        """Ours against torch's and torchvision's, module by module, on odd sizes (padding, shifts,
        masks).
        """
        from torchvision.models.swin_transformer import ShiftedWindowAttention

        model = graft(lively(name), method="bias", classes=2)
        theirs = dict(lively(name).net.named_modules())
        generator, seen = torch.Generator().manual_seed(0), 0
        with torch.no_grad():
            for where, module in model.net.named_modules():
                if isinstance(module, nn.MultiheadAttention):
                    x = torch.randn(2, 7, module.embed_dim, generator=generator)
                    given, options = (x, x, x), {"need_weights": False}
                elif isinstance(module, ShiftedWindowAttention):
                    x = torch.randn(2, 17, 23, module.proj.in_features, generator=generator)
                    given, options = (x,), {}
                else:
                    continue
                seen += 1
                assert type(module).__name__.startswith("Open")
                ours, plain = module(*given, **options), theirs[where](*given, **options)
                ours, plain = (ours[0], plain[0]) if isinstance(ours, tuple) else (ours, plain)
                torch.testing.assert_close(ours, plain, atol=2e-5, rtol=1e-4)
        assert seen == 12

    def test_an_attention_that_cannot_be_opened_is_refused(self) -> None:
        """Silently adapting nothing would be worse than to say so."""
        for odd in (
            nn.MultiheadAttention(8, 2),
            nn.MultiheadAttention(8, 2, kdim=4, batch_first=True),
        ):
            net = nn.Sequential(odd)
            with pytest.raises(UserError) as caught:
                open_attention(net, select(find_layers(net), "auto", net))
            assert caught.value.where == "0"


class TestTargets:
    def test_last_block(self, lively: Lively) -> None:
        """`last-block` must reach the last residual block, and nothing before it."""
        names = graft(
            lively("cifar-resnet20"), method="lora", classes=2, targets="last-block"
        ).adapter_state()
        touched = {n.split(".adapter")[0] for n in names if "adapter" in n}
        assert touched == {"layer3.2.conv1", "layer3.2.conv2"}
        names = graft(
            lively("resnet18"), method="bottleneck", classes=2, targets="last-block"
        ).adapter_state()
        assert {n.split(".adapter")[0] for n in names if "adapter" in n} == {"layer4.1"}

    def test_patterns_match_layers_and_what_is_around_them(self, lively: Lively) -> None:
        """A person names layers or whole stages; both must work."""
        for patterns, count in (
            (("layer1",), 6),
            (("layer?.0",), 6),
            (("*.conv2",), 9),
            (("conv1", "layer3.2.*"), 3),
        ):
            names = graft(
                lively("cifar-resnet20"), method="bias", classes=2, targets=patterns
            ).adapter_state()
            assert sum(n.endswith("adapter.bias") for n in names) == count, patterns

    def test_nothing_matched(self, lively: Lively) -> None:
        """Training a head while believing in LoRA must not happen; the message lists names that
        exist.
        """
        with pytest.raises(UserError) as caught:
            graft(lively("cifar-resnet20"), method="lora", classes=2, targets=("layer9.*", "fc"))
        assert "'layer9.*'" in caught.value.what
        assert "layer1.0.conv1" in caught.value.remedy
        with pytest.raises(UserError):
            graft(lively("cifar-resnet20"), method="lora", classes=2, targets=())

    def test_adapters_that_a_backbone_or_method_cannot_take(self, lively: Lively) -> None:
        """Each is answered with what would work."""
        plain = tiny(nn.Linear(6, 4))
        with pytest.raises(UserError, match="residual blocks"):
            graft(plain, method="bottleneck", classes=2)
        with pytest.raises(UserError, match="residual blocks"):
            graft(plain, method="lora", classes=2, targets="last-block")
        for method in ("head", "full"):
            with pytest.raises(UserError, match="takes no targets"):
                graft(lively("mlp"), method=method, classes=2, targets="last-block")
        with pytest.raises(UserError) as caught:
            graft(lively("mlp"), method="lorra", classes=2)
        assert "lora" in caught.value.remedy
        for wrong in (
            {"rank": 0},
            {"method": "bottleneck", "width": 0},
            # one is a head of a number; of classes a plan names two at least
            {"classes": 0},
            {"alpha": float("nan")},
            {"alpha": -1.0},
        ):
            with pytest.raises(UserError):
                graft(lively("mlp"), **{"method": "lora", "classes": 2, **wrong})  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "name",
        [
            *QUICK,
            *(
                pytest.param(name, marks=pytest.mark.slow)
                for name in (
                    *HEAVY,
                    "densenet121",
                    "mnasnet0_5",
                    "mobilenet_v2",
                    "regnet_y_400mf",
                    "efficientnet_v2_s",
                )
            ),
        ],
    )
    def test_blocks_are_known_with_their_channels(self, name: str, lively: Lively) -> None:
        """The table of blocks against what each block really puts out."""
        net = build_network(name, NetworkShape(columns=5, hidden=(16, 8)), seed=0).eval()
        found = find_blocks(net)
        assert found
        shapes: dict[str, tuple[int, ...]] = {}
        for where, block in found.items():

            def note(module: nn.Module, given: object, output: Tensor, where: str = where) -> None:
                shapes[where] = tuple(output.shape)

            block.register_forward_hook(note)
        with torch.no_grad():
            net(
                torch.zeros(1, 5)
                if name == "mlp"
                else torch.zeros(1, 3, *[224 if "vit" in name else 64] * 2)
            )
        for where, block in found.items():
            axis = -1 if has_channels_last(block) else 1
            assert shapes[where][axis] == count_channels(block), where


class TestDeterminism:
    def test_same_seed_same_bits_and_nobodys_random_state(self, lively: Lively) -> None:
        """All nodes graft by themselves and must begin alike; torch's global state belongs to
        others.
        """
        for method in METHODS.names:
            torch.manual_seed(3)
            before = torch.get_rng_state()
            first = graft(
                lively("cifar-resnet20"), method=method, classes=3, seed=11
            ).adapter_state()
            assert torch.equal(before, torch.get_rng_state())
            torch.rand(5)
            again = graft(
                lively("cifar-resnet20"), method=method, classes=3, seed=11
            ).adapter_state()
            other = graft(
                lively("cifar-resnet20"), method=method, classes=3, seed=12
            ).adapter_state()
            assert list(first) == sorted(first)
            assert all(torch.equal(first[k], again[k]) for k in first)
            assert not torch.equal(first["linear.weight"], other["linear.weight"])

    def test_the_head_begins_alike_under_every_method(self, lively: Lively) -> None:
        """Else a comparison of methods compares their heads' luck."""
        heads = [
            graft(lively("mlp"), method=m, classes=3, seed=4).adapter_state()["head.weight"]
            for m in METHODS.names
        ]
        assert all(torch.equal(head, heads[0]) for head in heads)

    def test_values_are_drawn_as_torch_draws_them(self, lively: Lively) -> None:
        """U(−1/√fan_in, 1/√fan_in): its deviation is 1/√(3·fan_in); a wrong fan_in would slow
        training.
        """
        state = graft(lively("resnet18"), method="lora", classes=100, seed=4).adapter_state()
        for name, fan_in in (("fc.weight", 512), ("layer4.1.conv2.adapter.lora_A.weight", 512 * 9)):
            values = state[name]
            assert values.abs().max() <= fan_in**-0.5
            assert abs(float(values.std()) * (3 * fan_in) ** 0.5 - 1) < 0.02
            assert abs(float(values.mean())) < 0.02 * fan_in**-0.5


def gradients_by_loop(model: GraftedModel, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """One example at a time."""
    rows: dict[str, list[Tensor]] = {}
    for i in range(len(x)):
        model.zero_grad()
        F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        for name, p in model.trainable_parameters().items():
            assert p.grad is not None, name
            rows.setdefault(name, []).append(p.grad.clone())
    return {name: torch.stack(grads) for name, grads in rows.items()}


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *(("cifar-resnet20", m) for m in METHODS.names if m != "full"),
        *(("mlp", m) for m in METHODS.names),
        pytest.param("vit_b_16", "lora", marks=pytest.mark.slow),
        pytest.param("vit_b_16", "bias", marks=pytest.mark.slow),
        pytest.param("swin_t", "lora", marks=pytest.mark.slow),
        pytest.param("swin_t", "scale-shift", marks=pytest.mark.slow),
        pytest.param("convnext_tiny", "lora", marks=pytest.mark.slow),
        pytest.param("convnext_tiny", "bottleneck", marks=pytest.mark.slow),
        pytest.param("mobilenet_v3_small", "lora", marks=pytest.mark.slow),
        pytest.param("resnext50_32x4d", "lora", marks=pytest.mark.slow),
    ],
)
def test_per_example_gradients_by_opacus(
    name: str, method: str, lively: Lively, inputs: Inputs
) -> None:
    """Differential privacy rests on them: a layer that hides from Opacus' hooks, windows taken for
    examples, or channels that lie last in memory would give wrong ones. Against a loop over single
    examples, in float64.

    (`full` on a network with BatchNorm is not for Opacus.)
    """
    from opacus import GradSampleModule

    targets = "last-block" if name in ("vit_b_16", "swin_t") else "auto"
    model = disturb(
        graft(lively(name), method=method, classes=3, rank=4, targets=targets, seed=1)
    ).double()
    x, y = inputs(name, 3).double(), torch.tensor([0, 2, 1])
    wanted = gradients_by_loop(model, x, y)
    model.zero_grad()
    model.train()
    wrapped = GradSampleModule(model, strict=False)
    if x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    F.cross_entropy(wrapped(x), y).backward()
    for key, p in model.trainable_parameters().items():
        largest = float(
            wanted[key].abs().max()
        )  # rounding is as large as the terms of a sum, not as the sum
        torch.testing.assert_close(
            vars(p)["grad_sample"],
            wanted[key],
            atol=1e-11 * largest,
            rtol=1e-9,
            msg=lambda m, key=key: f"{key}: {m}",
        )
    wrapped.to_standard_module()


class PaddedConv2d(nn.Conv2d):
    """Pads its input first, as TensorFlow's convolutions do."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of the padded input."""
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class NamedConv2d(nn.Conv2d):
    """A class of its own that computes just what a convolution does."""


class TestLayersOfAnotherKind:
    def test_one_that_computes_something_else_is_not_served(self) -> None:
        """LoRA beside a layer sees the input that the layer gets, not the one that it pads: what is
        merged would be another model (seen: 38 % off).
        """
        net = nn.Sequential(nn.Conv2d(3, 4, 3), PaddedConv2d(4, 4, 3), NamedConv2d(4, 4, 3))
        assert list(find_layers(net)) == ["0", "2"]

    def test_nothing_to_serve_is_said(self) -> None:
        """`targets: auto` that trains the head alone and calls it LoRA."""
        net = nn.Sequential(PaddedConv2d(3, 4, 3))
        with pytest.raises(UserError, match="auto matches nothing") as caught:
            select(find_layers(net), "auto", net)
        assert "method: head" in str(caught.value)
