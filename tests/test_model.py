"""The networks: shapes, finite reach, and that training and inference see the same functions."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import tiny_fapn, tiny_fn
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from mffsr.limits import SCALES
from mffsr.model import FAPN, FN, FapnConfig, SrnConfig, blocks, enlarge, onednn
from mffsr.model.blocks import (
    Stack,
    box_mean,
    concatenate,
    conv,
    convolve,
    gradient_map,
    merge_windows,
    windows,
)
from mffsr.model.dense import DenseResidualBlock
from mffsr.model.fapn import FR
from mffsr.model.joint import decide
from mffsr.model.resize import enlarge_bilinear
from mffsr.model.srn import SRN, STEPS
from mffsr.model.transition import TRANSITION_REACH, WIDE_REACH, Bands, transition
from mffsr.tiles import Tile, span


def noise(height, width, batch=1, seed=0):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (5, 17), (33, 20)])
def test_every_size_is_enlarged_by_the_scale(scale, size):
    image = noise(*size)
    out = tiny_fn(scale)([image, image], torch.full((1, 2, *size), 0.5))
    assert out.shape == (1, 3, size[0] * scale, size[1] * scale)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("attention", ["sam-cam", "cam-sam", "sam", "cam", "none"])
@pytest.mark.parametrize("affinity", [True, False])
def test_focus_maps_are_probabilities_in_every_variant(attention, affinity):
    torch.manual_seed(0)
    network = FAPN(FapnConfig(width=8, blocks=1, attention=attention, affinity=affinity)).eval()
    maps = network(noise(19, 35), noise(19, 35, seed=1))
    for m in maps:
        assert m.shape == (1, 1, 19, 35)
        assert ((m >= 0) & (m <= 1)).all()


@pytest.mark.parametrize("options", [{"gradient_embedding": False}, {"shallow_deep": False}])
def test_srn_ablations_run(options):
    network = FN(SrnConfig(scale=2, features=8, growth=8, blocks=1, **options)).eval()
    assert network([noise(9, 9)], torch.ones(1, 1, 9, 9)).shape == (1, 3, 18, 18)


def touched(function, size, at):
    """Return the bounding reach of one input pixel: the largest distance at which the output changes."""
    image = noise(size, size)
    other = image.clone()
    other[:, :, at, at] = 1 - other[:, :, at, at]
    with torch.inference_mode():
        changed = (function(image.double()) - function(other.double())).abs().amax((0, 1)) > 0
    rows, columns = changed.nonzero(as_tuple=True)
    return rows, columns


@pytest.mark.parametrize("attention", ["sam-cam", "cam-sam", "sam", "cam", "none"])
def test_fapn_reach_is_not_understated(attention):
    torch.manual_seed(1)
    config = FapnConfig(width=8, blocks=2, attention=attention)
    network = FAPN(config).eval().double()
    reference = noise(176, 176, seed=5).double()
    rows, columns = touched(lambda x: network.logits(x, reference), 176, 88)
    distance = int(max((rows - 88).abs().max(), (columns - 88).abs().max()))
    assert config.reach // 2 < distance <= config.reach


@pytest.mark.parametrize("attention", ["sam-cam", "cam-sam", "sam", "cam", "none"])
def test_a_halo_that_ends_on_the_windows_suffices(attention):
    torch.manual_seed(1)
    config = FapnConfig(width=8, blocks=2, attention=attention)
    network = FAPN(config).eval().double()
    pair = noise(180, 100).double(), noise(180, 100, seed=5).double()
    with torch.inference_mode():
        whole = network.logits(*pair)
        for start in (94, 96):  # near a window's end, and at its start
            tile = Tile(*(span(start, start + 3, size, config.halo, 16) for size in (180, 100)))
            part = network.logits(*(image[:, :, tile.outer[0], tile.outer[1]] for image in pair), tile.inner)
            torch.testing.assert_close(part, whole[:, :, tile.core[0], tile.core[1]])


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_fn_reach_is_not_understated(scale):
    network = tiny_fn(scale).double()
    # `enlarge` rounds to float32 anyway; exact zeros outside the reach are what counts
    rows, columns = touched(lambda x: network([x], torch.ones(1, 1, 64, 64)), 64, 32)
    low, high = min(rows.min(), columns.min()), max(rows.max(), columns.max())
    distance = max(32 - int(low) // scale, int(high) // scale - 32)
    assert network.reach // 2 < distance <= network.reach


def test_gradient_map_is_the_laplacian_of_the_paper():
    image = noise(7, 9)
    kernel = -torch.ones(1, 3, 3, 3)
    kernel[:, :, 1, 1] = 8
    expected = torch.nn.functional.conv2d(image, kernel, padding=1)
    torch.testing.assert_close(gradient_map(image), expected, atol=1e-5, rtol=0)


def test_box_mean_counts_only_the_image():
    image = noise(9, 12)
    mean = box_mean(image, 5)
    torch.testing.assert_close(mean[:, :, 4, 6], image[:, :, 2:7, 4:9].mean((2, 3)))
    torch.testing.assert_close(mean[:, :, 0, 0], image[:, :, :3, :3].mean((2, 3)))


def test_windows_are_merged_back():
    image = noise(21, 37, batch=2)
    assert windows(image, 16).shape == (2, 3, 2, 3, 16, 16)
    torch.testing.assert_close(merge_windows(windows(image, 16), 21, 37), image)


def halves(columns: int) -> torch.Tensor:
    """Masks (1, 2, 80, 120) of which the first ends after so many columns."""
    first = torch.zeros(1, 1, 80, 120)
    first[..., :columns] = 1
    return torch.cat((first, 1 - first), 1)


def narrow(columns: int) -> torch.Tensor:
    """Return the first of these masks as it passes over from detail to the same detail."""
    kernel = torch.tensor([[[1.0, 2, 5, 10, 14, 22, 27, 30, 34, 30, 27, 22, 14, 10, 5, 2, 1]]]) / 256
    row = (torch.arange(-8, 128) < columns).float()
    return torch.nn.functional.conv1d(row[None, None], kernel).expand(1, 80, 120)


def test_the_transition_is_wide_where_the_picture_is_plain_and_narrow_beside_detail():
    masks = halves(60)
    plain = [torch.full((1, 3, 80, 120), value) for value in (0.4, 0.5)]
    weights = transition(masks, plain)
    torch.testing.assert_close(weights.sum(1), torch.ones(1, 80, 120))
    row = weights[0, 0, 40]
    assert (row.diff() <= 0).all()
    assert (row == 1).sum() == (row == 0).sum() == 60 - WIDE_REACH
    assert row.diff().abs().max() < 0.1
    plain[0].copy_(plain[1])
    for source in plain:  # the same detail in both
        source[..., ::7] = 0.7
    torch.testing.assert_close(transition(masks, plain)[:, 0], narrow(60))


def test_a_transition_may_be_recorded():
    """No branch depends on a value: CUDA graphs hold one way only, and reading would wait for the card."""
    made = transition(torch.ones(1, 2, 20, 20, device="meta"), [torch.ones(1, 3, 20, 20, device="meta")] * 2)
    assert made.shape == (1, 2, 20, 20)


def test_where_no_mask_is_near_there_is_no_weight():
    weights = transition(torch.zeros(1, 2, 60, 60), [noise(60, 60), noise(60, 60)])
    assert torch.equal(weights, torch.zeros(1, 2, 60, 60))


def test_in_a_transition_the_source_with_more_contrast_weighs_more():
    masks = halves(60)
    fine = 0.5 + 0.2 * (torch.arange(120) // 2 % 2).expand(1, 3, 80, 120)
    blurred = torch.full((1, 3, 80, 120), 0.6)
    weights = transition(masks, [fine, blurred])
    torch.testing.assert_close(weights.sum(1), torch.ones(1, 80, 120))
    row, alone = weights[0, 0, 40], narrow(60)[0, 40]
    assert (row >= alone - 1e-6).all()
    assert row[60] > 0.95 > 0.5 > alone[60], "detail stays up to the border, and a pixel beyond it"
    assert row[66] < 0.2, "but hardly beyond the transition"
    slope = 0.6 + torch.linspace(0, 0.24, 120).expand(1, 3, 80, 120)  # half a level of 255 a pixel
    torch.testing.assert_close(
        transition(masks, [slope, fine])[0, 1, 40], weights[0, 0, 40].flip(0), rtol=0, atol=0.02
    )


@given(seed=st.integers(0, 99), columns=st.integers(1, 119))
def test_nothing_beyond_its_reach_matters_to_a_transition(seed: int, columns: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    sources = [0.4 + 0.003 * torch.randn(1, 3, 80, 120, generator=rng).cumsum(3) for _ in range(2)]
    masks = halves(columns)

    def part(x: torch.Tensor, margin: int) -> torch.Tensor:
        return x[:, :, 30 - margin : 40 + margin, 50 - margin : 75 + margin]

    near = [part(x, TRANSITION_REACH) for x in (masks, *sources)]
    found = transition(near[0], near[1:])
    inner = (slice(None), slice(None), *(slice(TRANSITION_REACH, -TRANSITION_REACH),) * 2)
    assert torch.equal(found[inner], part(transition(masks, sources), 0))


def test_what_is_coarse_passes_over_more_widely_where_it_is_seen():
    masks, detail, bands = halves(60), 0.02 * noise(80, 120), Bands.of(80, 120)
    sources = dark, shining = 0.2 + detail, 0.3 + detail
    coarse = [bands.coarse(source) for source in sources]
    common = sum(w * c for w, c in zip(bands.weights(masks).split(1, 1), coarse, strict=True))
    first, second = (bands.joined(s, c, common) for s, c in zip(sources, coarse, strict=True))
    torch.testing.assert_close(first[..., 60], second[..., 60], rtol=0, atol=0.03)
    assert torch.equal(first[..., : 60 - bands.reach], dark[..., : 60 - bands.reach])
    assert torch.equal(second[..., 60 + bands.reach :], shining[..., 60 + bands.reach :])
    torch.testing.assert_close(first.diff(), dark.diff(), rtol=0, atol=0.01)
    fused = torch.cat((first[..., :60], second[..., 60:]), 3) - detail
    assert fused.diff().abs().max() < 0.03 < 0.1, "no outline"
    faint = bands.coarse(dark + 0.015)
    assert torch.equal(bands.joined(dark, coarse[0], (coarse[0] + faint) / 2), dark), "not seen: as it was"


def test_bands_are_coarser_in_a_large_photo():
    sizes = ((100, 9000), (1536, 2048), (2832, 4248), (4000, 6000), (8165, 12247))
    assert [max(Bands.of(*size).steps) for size in sizes] == [8, 8, 16, 16, 32]
    assert [Bands.of(*size[::-1]) for size in sizes] == [Bands.of(*size) for size in sizes]


def test_decision_prefers_the_first_on_a_tie():
    network = tiny_fapn()
    image = noise(20, 20)
    maps = network(image, image)
    assert set(decide(maps).unique().tolist()) <= {0.0, 1.0}
    assert decide(type(maps)(maps.m1, maps.m1)).all()


def test_a_source_without_mask_may_be_left_out():
    network = tiny_fn(2)
    a, b = noise(16, 16), noise(16, 16, seed=1)
    masks = torch.cat((torch.ones(1, 1, 16, 16), torch.zeros(1, 1, 16, 16)), 1)
    with torch.inference_mode():
        assert torch.equal(network([a, b], masks), network([a], masks[:, :1]))


def test_sources_and_masks_must_be_as_many():
    with pytest.raises(ValueError, match="2 sources but 1 masks"):
        tiny_fn(2)([noise(4, 4), noise(4, 4)], torch.ones(1, 1, 4, 4))


def test_enlarge_is_pillows_bicubic():
    from PIL import Image

    plane = noise(11, 14)[0, 0]
    expected = Image.fromarray(plane.numpy(), "F").resize((42, 33), Image.Resampling.BICUBIC)
    ours = enlarge(plane[None, None].expand(1, 3, -1, -1), 3)[0, 0]
    torch.testing.assert_close(ours, torch.from_numpy(__import__("numpy").array(expected)), atol=2e-6, rtol=0)


@pytest.mark.parametrize("scale", SCALES)
def test_a_pixels_enlargement_does_not_depend_on_where_a_tile_begins(scale):
    image = noise(3, 2000)
    for make in (enlarge, enlarge_bilinear):
        whole, part = make(image, scale), make(image[..., 1500:1700], scale)
        inner = slice(2 * scale, -2 * scale)
        assert torch.equal(part[..., inner], whole[..., 1500 * scale : 1700 * scale][..., inner])
    expected = torch.nn.functional.interpolate(image[..., :40], scale_factor=scale, mode="bilinear")
    torch.testing.assert_close(enlarge_bilinear(image[..., :40], scale), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SrnConfig(scale=5), "scale is 5"),
        (lambda: FapnConfig(attention="all"), "attention is 'all'"),
        (lambda: FapnConfig(cam_window=8), "cam_window is 8"),
        (lambda: SrnConfig(scale=2, blocks=0), "blocks is 0, expected a whole number from 1 to 100"),
        (lambda: SrnConfig(scale=2, features=64.0), "features is 64.0"),
        (lambda: FapnConfig(width=1025), "width is 1025, expected a whole number from 1 to 1024"),
        (lambda: FapnConfig(affinity=1), "affinity is 1, expected true or false"),
    ],
)
def test_impossible_configurations_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_compute_is_within_the_papers():
    """1.7 M multiply-adds per low-resolution pixel and source at ×2 with decoder, 1.6 M for a pair's FAPN."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:  # where no fused operator hides any
        FN(SrnConfig(scale=2))([torch.rand(1, 3, 32, 32)], torch.ones(1, 1, 32, 32))
    assert 1.5e6 < counter.get_total_flops() / 2 / 32**2 < 1.7e6
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        FAPN(FapnConfig())(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32))
    assert 1.5e6 < counter.get_total_flops() / 2 / 32**2 < 1.6e6


@pytest.mark.parametrize("slope", [None, 0.0, 0.2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("widths", [(5,), (5, 1), (3, 8, 4)])
@pytest.mark.parametrize("added", [False, True])
def test_a_convolution_by_parts_is_that_of_all_side_by_side(slope, dtype, kernel, widths, added):
    torch.manual_seed(4)
    layer = conv(sum(widths), 7, kernel).to(dtype)
    parts = [torch.randn(2, n, 9, 11).to(dtype, memory_format=torch.channels_last) for n in widths]
    onto = torch.randn(2, 7, 9, 11).to(dtype, memory_format=torch.channels_last) if added else None
    kept = None if onto is None else onto.clone()
    expected = layer.double()(torch.cat(parts, 1).double()) + (0 if onto is None else onto)
    if slope is not None:
        expected = torch.nn.functional.leaky_relu(expected, slope)
    layer.to(dtype)
    rounding = {torch.bfloat16: {"rtol": 0.02, "atol": 0.03}}.get(dtype, {})
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            found = convolve(layer, *parts, slope=slope, onto=onto)
        torch.testing.assert_close(found.detach(), expected.detach().to(dtype), **rounding)
    assert onto is None or torch.equal(onto, kept)


REGIONS = [(slice(0, 30), slice(31, 60)), (slice(50, 51), slice(40, 41)), (slice(70, 90), slice(0, 96))]


@pytest.mark.parametrize("region", REGIONS)
def test_the_maps_of_a_region_are_those_of_the_whole(region):
    model = tiny_fapn().double()
    with torch.no_grad():
        pair = noise(90, 96).double(), noise(90, 96, seed=1).double()
        whole, part = model(*pair), model(*pair, region)
    for found, expected in zip(part, whole, strict=True):
        torch.testing.assert_close(found, expected[:, :, region[0], region[1]])


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("count", [1, 2])
def test_the_enlargement_of_a_region_is_that_of_the_whole(region, scale, count):
    model = tiny_fn(scale).double()
    sources = [noise(90, 96, seed=i).double() for i in range(count)]
    masks = torch.rand(1, count, 90, 96, dtype=torch.float64)
    masks = masks / masks.sum(1, keepdim=True)
    with torch.no_grad():
        whole, part = model(sources, masks), model(sources, masks, region)
    rows, columns = (slice(s.start * scale, s.stop * scale) for s in region)
    torch.testing.assert_close(part, whole[:, :, rows, columns], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wanted", [None, REGIONS[0]])
def test_a_source_runs_only_where_its_mask_is_not_zero(wanted, monkeypatch):
    model = tiny_fn(2).double()
    sources = [noise(90, 96, seed=i).double() for i in range(3)]
    masks = torch.zeros(1, 3, 90, 96, dtype=torch.float64)
    masks[:, 0, :, :20], masks[:, 1, :, 20:] = 1, 1  # the third nowhere
    ran = []
    features = SRN.features
    monkeypatch.setattr(
        SRN, "features", lambda self, image, region: ran.append(region[1]) or features(self, image, region)
    )
    with torch.no_grad():
        everywhere = model(sources, masks, wanted)
        ran.clear()
        gated = model(sources, masks, wanted, gate=True)
    torch.testing.assert_close(gated, everywhere, rtol=1e-5, atol=1e-5)
    assert ran == ([slice(0, 21), slice(19, 96)] if wanted is None else [slice(29, 62)])


def test_what_a_source_wins_far_apart_is_not_run_in_one_piece(monkeypatch):
    model = tiny_fn(2)
    sources = [noise(240, 240, seed=i) for i in range(2)]
    masks = torch.zeros(1, 2, 240, 240)
    masks[:, 0, :20, :20] = masks[:, 0, -20:, -20:] = 1
    masks[:, 1] = 1 - masks[:, 0]
    ran = []
    features = SRN.features
    monkeypatch.setattr(
        SRN, "features", lambda self, image, region: ran.append(region) or features(self, image, region)
    )
    with torch.no_grad():
        everywhere = model(sources, masks)
        ran.clear()
        gated = model(sources, masks, gate=True)
    torch.testing.assert_close(gated, everywhere, rtol=1e-5, atol=1e-5)
    corners = [(slice(0, 21), slice(0, 21)), (slice(219, 240), slice(219, 240))]
    assert sorted(ran[:2], key=str) == corners


def test_a_stack_takes_an_activation_with_its_convolution():
    layer, x = conv(5, 7), noise(9, 11)[:, :1].expand(1, 5, 9, 11)
    with torch.no_grad():
        assert torch.equal(Stack(layer, torch.nn.LeakyReLU(0.2))(x), convolve(layer, x, slope=0.2))


def test_convolutions_by_parts_keep_to_types_that_the_processor_has(monkeypatch):
    monkeypatch.setattr(onednn, "PRESENT", True)
    monkeypatch.setattr(onednn, "TYPES", (torch.float32,))
    asked = []
    monkeypatch.setattr(blocks, "sum_of_convolutions", lambda terms, *rest: asked.append(terms[0][0].dtype))
    layer, x = conv(3, 4), noise(9, 11)
    with torch.no_grad():
        convolve(layer, x)
        with torch.autocast("cpu", torch.bfloat16):
            assert convolve(layer, x).dtype == torch.bfloat16
    assert asked == [torch.float32]


@pytest.mark.skipif(not onednn.PRESENT, reason="this PyTorch has no such operators")
@pytest.mark.parametrize("widths", [(16,), (16, 8)])
def test_a_dense_block_by_parts_has_the_gradients_of_autograd(widths, monkeypatch):
    torch.manual_seed(6)
    block = DenseResidualBlock(sum(widths), 16, 12)
    given = [torch.randn(2, n, 48, 40, requires_grad=True) for n in (16, *widths)]
    target = torch.randn(2, 16, 48, 40)

    def gradients(autocast):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            onto, *parts = (x.bfloat16() for x in given) if autocast else given
            out = block(*parts, onto=onto)
        wanted = (*given, *block.parameters())
        return [out.detach(), *torch.autograd.grad((out.float() * target).sum(), wanted)]

    by_parts, rounded = gradients(False), gradients(True)
    monkeypatch.setattr(onednn, "PRESENT", False)
    whole, roughly = gradients(False), gradients(True)
    for found, expected, rough, expected_rough in zip(by_parts, whole, rounded, roughly, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
        error, usual = ((x - expected).square().mean().sqrt() for x in (rough, expected_rough))
        assert error <= 2 * usual


def test_concatenation_keeps_channels_last_and_order():
    a, b = torch.randn(2, 3, 4, 5), torch.randn(2, 1, 4, 5)
    joined = concatenate(a.contiguous(memory_format=torch.channels_last), b)
    assert torch.equal(joined, torch.cat((a, b), 1))
    assert joined.is_contiguous(memory_format=torch.channels_last)


def test_the_folded_batch_norm_is_the_batch_norm():
    torch.manual_seed(3)
    block = FR(4).double().eval()
    with torch.no_grad():
        block.norm.running_mean.normal_()
        block.norm.running_var.uniform_(0.5, 2)
        block.norm.weight.normal_()
        block.norm.bias.normal_()
        local, glob = torch.randn(2, 2, 4, 9, 7, dtype=torch.double)
        feature = torch.cat((torch.randn_like(local), glob), 1)
        expected = block.norm(torch.sigmoid(torch.relu(block.conv(feature)))) + local
        torch.testing.assert_close(block(feature, local), torch.cat((expected, glob), 1))


def test_every_scale_has_its_steps():
    assert set(STEPS) == set(SCALES)
    assert all(math.prod(steps) == scale for scale, steps in STEPS.items())
