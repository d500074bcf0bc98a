"""Converting published checkpoints, against plain implementations of the published networks."""

import argparse
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from vfmbench.errors import UserError
from vfmbench.files import file_sha256
from vfmbench.methods.adapter import NoiseAdapter, expand_adapter_size
from vfmbench.methods.adapter_layout import convert_adapter
from vfmbench.methods.published import (
    ADAPTER_KEYS,
    FLOW_KEYS,
    PUBLISHED_PROBLEMS,
    PublishedOptions,
    find_state,
    training_options,
)
from vfmbench.methods.sit_layout import convert_flow
from vfmbench.models.networks import flow_network
from vfmbench.models.sit import SiT, expand_sit_size
from vfmbench.registry import suites
from vfmbench.weights.conversion import convert
from vfmbench.weights.reading import read_content
from vfmbench.weights.store import WeightStore

WIDTH, DEPTH, HEADS, PATCH, CHANNELS, SIZE, CLASSES, DMF_DEPTH = 48, 3, 4, 2, 4, 8, 5, 2
TINY = PublishedOptions(num_heads=HEADS, dmf_depth=DMF_DEPTH)
IMAGE = 16


@pytest.fixture(scope="module")
def suite():
    """The latents and classes of the tiny networks below, with the tasks of the paper's suite."""
    paper = suites.get("imagenet256")({})
    shapes = {"image_shape": (3, IMAGE, IMAGE), "latent_shape": (CHANNELS, SIZE, SIZE), "num_classes": CLASSES}
    return SimpleNamespace(name="tiny", task=paper.task, **shapes)


def random_state(shapes, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (0.2 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype) for name, shape in shapes.items()
    }


def sit_shapes(width=WIDTH, depth=DEPTH, size=SIZE, classes=CLASSES, sigma=False, null=True):
    """The published layout."""
    outputs = PATCH**2 * CHANNELS * (2 if sigma else 1)
    layers = {
        "t_embedder.mlp.0": (width, 256),
        "t_embedder.mlp.2": (width, width),
        "final_layer.linear": (outputs, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
        "x_embedder.proj": (width, CHANNELS, PATCH, PATCH),
    }
    for block in range(depth):
        layers |= {
            f"blocks.{block}.attn.qkv": (3 * width, width),
            f"blocks.{block}.attn.proj": (width, width),
            f"blocks.{block}.mlp.fc1": (4 * width, width),
            f"blocks.{block}.mlp.fc2": (width, 4 * width),
            f"blocks.{block}.adaLN_modulation.1": (6 * width, width),
        }
    shapes = {f"{name}.weight": shape for name, shape in layers.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    others = {"y_embedder.embedding_table.weight": (classes + null, width), "pos_embed": (1, (size // PATCH) ** 2, width)}
    return shapes | others


def sit_state(seed=0, dtype=torch.float32, **sizes):
    """Random weights in the published layout."""
    return random_state(sit_shapes(**sizes), seed, dtype)


def published_sit(state, x, t, r, label, dmf_depth=DMF_DEPTH):
    """SiT in DMF form as its papers describe it, in its author's convention; r = t is plain SiT. A sigma head is ignored."""

    def linear(name, h):
        return torch.einsum("...i,oi->...o", h, state[f"{name}.weight"]) + state[f"{name}.bias"]

    def silu(h):
        return h / (1 + (-h).exp())

    def normalise(h, shift, scale):
        centred = h - h.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + scale[:, None]) + shift[:, None]

    def condition(time):
        # In single precision, as published, or the angles differ by 1e-7.
        frequencies = torch.exp(torch.arange(128, dtype=torch.float32) * -math.log(10000) / 128)
        angle = time[:, None] * frequencies.to(x.dtype)
        features = torch.cat([angle.cos(), angle.sin()], 1)
        embedded = linear("t_embedder.mlp.2", silu(linear("t_embedder.mlp.0", features)))
        return embedded + state["y_embedder.embedding_table.weight"][label]

    def attention(name, h):
        q, k, v = linear(f"{name}.qkv", h).chunk(3, -1)
        heads = []
        for part in range(HEADS):
            own = slice(part * WIDTH // HEADS, (part + 1) * WIDTH // HEADS)
            scores = torch.einsum("bnd,bmd->bnm", q[..., own], k[..., own]) / math.sqrt(WIDTH / HEADS)
            weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
            heads.append(torch.einsum("bnm,bmd->bnd", weights, v[..., own]))
        return linear(f"{name}.proj", torch.cat(heads, -1))

    def gelu(h):
        return 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))

    kernel = state["x_embedder.proj.weight"].flatten(1)
    h = F.unfold(x, PATCH, stride=PATCH).transpose(1, 2) @ kernel.T + state["x_embedder.proj.bias"] + state["pos_embed"]
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    for block in range(depth):
        c = condition(t if block < dmf_depth else r)
        parts = linear(f"blocks.{block}.adaLN_modulation.1", silu(c)).chunk(6, -1)
        h = h + parts[2][:, None] * attention(f"blocks.{block}.attn", normalise(h, *parts[:2]))
        inner = gelu(linear(f"blocks.{block}.mlp.fc1", normalise(h, *parts[3:5])))
        h = h + parts[5][:, None] * linear(f"blocks.{block}.mlp.fc2", inner)
    h = linear("final_layer.linear", normalise(h, *linear("final_layer.adaLN_modulation.1", silu(condition(r))).chunk(2, -1)))
    # Each token is a patch with its channels last.
    pixels = h.unflatten(-1, (PATCH * PATCH, -1))[..., :CHANNELS].permute(0, 3, 2, 1).flatten(1, 2)
    return F.fold(pixels, (SIZE, SIZE), PATCH, stride=PATCH)


def adapter_state(seed=0, multipliers=(1, 2), blocks=1, embedding=16, problems=6):
    """Random weights in the layout of the authors' adapter, with 32 channels and one halving."""
    layers = {"class_embed.1": (embedding, embedding), "class_embed.3": (embedding, embedding), "conv_in": (32, 3, 3, 3)}

    def block(name, before, width):
        layers.update({f"{name}.norm1": (before,), f"{name}.conv1": (width, before, 3, 3), f"{name}.norm2": (width,)})
        layers.update({f"{name}.conv2": (width, width, 3, 3)} | {f"{name}.film{k}.fc": (2 * width, embedding) for k in (1, 2)})
        if before != width:
            layers[f"{name}.shortcut"] = (width, before, 1, 1)

    width = 32
    for stage, multiplier in enumerate(multipliers):
        for number in range(blocks):
            block(f"down_blocks.{stage}.res_blocks.{number}", width, 32 * multiplier)
            width = 32 * multiplier
        if stage == 0:
            layers["down_blocks.0.downsample"] = (width, width, 3, 3)
    block("mid_block1", width, width)
    block("mid_block2", width, width)
    layers |= {"norm_out": (width,), "conv_out": (2 * CHANNELS, width, 3, 3)}
    shapes = {f"{name}.weight": shape for name, shape in layers.items()} | {f"{k}.bias": v[:1] for k, v in layers.items()}
    return random_state(shapes | {"class_embed.0.weight": (problems, embedding)}, seed)


def published_adapter(state, y, problem):
    """The authors' adapter at `adapter_state`'s sizes, layer by layer."""

    def layer(name):
        return state[f"{name}.weight"], state[f"{name}.bias"]

    def block(name, h):
        out = h
        for number in (1, 2):
            out = F.silu(F.group_norm(out, 32, *layer(f"{name}.norm{number}")))
            out = F.conv2d(out, *layer(f"{name}.conv{number}"), padding=1)
            gamma, beta = F.linear(embedding, *layer(f"{name}.film{number}.fc"))[..., None, None].tensor_split(2, 1)
            out = gamma * out + beta
        return out + (F.conv2d(h, *layer(f"{name}.shortcut")) if f"{name}.shortcut.weight" in state else h)

    embedding = F.linear(state["class_embed.0.weight"][problem], *layer("class_embed.1"))
    embedding = F.linear(F.silu(embedding), *layer("class_embed.3"))
    h = block("down_blocks.0.res_blocks.0", F.conv2d(y, *layer("conv_in"), padding=1))
    h = F.conv2d(h, *layer("down_blocks.0.downsample"), stride=2, padding=1)
    h = block("mid_block2", block("mid_block1", block("down_blocks.1.res_blocks.0", h)))
    h = F.conv2d(F.silu(F.group_norm(h, 32, *layer("norm_out"))), *layer("conv_out"), padding=1)
    return h[:, :CHANNELS], h[:, CHANNELS:].clamp(-10, 2)


def saved(path, content):
    torch.save(content, path)
    return path


def inputs(dtype):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, CHANNELS, SIZE, SIZE, generator=generator, dtype=torch.float64).to(dtype)
    t, r = torch.rand(2, 3, generator=generator, dtype=torch.float64).to(dtype)
    return x, t, r, torch.tensor([0, CLASSES - 1, CLASSES])  # the last is the null class


def converted_flow(state, suite, options, trained_dmf_depth=None):
    return convert_flow(Path("file.pt"), state, trained_dmf_depth, suite, options)


def converted(source, folder, suite, options):
    return convert(source, folder, suite, options.model_dump())


def flow_of(path):
    return find_state(read_content(path), FLOW_KEYS, "x_embedder.proj.weight")


@pytest.mark.parametrize("sigma", [False, True])
@pytest.mark.parametrize("convention", ["auto", "noise_at_one", "noise_at_zero"])
def test_converted_weights_are_the_published_network_in_our_convention(suite, sigma, convention):
    state = sit_state(sigma=sigma, dtype=torch.float64)
    options = TINY.model_copy(update={"time_convention": convention})
    converted, architecture, notes = converted_flow(state, suite, options)
    network = SiT(**architecture).double()
    network.load_state_dict(converted)
    x, t, r, label = inputs(torch.float64)
    reversed_time = convention == "noise_at_zero" or (convention == "auto" and sigma)
    expected = -published_sit(state, x, 1 - t, 1 - r, label) if reversed_time else published_sit(state, x, t, r, label)
    assert expected.std() > 0.1
    for fused in (True, False):
        assert (network(x, t, r, label, fused_attention=fused) - expected).abs().max() < 1e-12
    assert notes["learned_sigma"] is sigma
    assert notes["time_convention"] == ("noise_at_zero" if reversed_time else "noise_at_one")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"ema": state, "model": sit_state(9), "opt": {"state": {}, "param_groups": [{"lr": 1e-4}]}, "steps": 7},
        lambda state: {"model": state},
        lambda state: {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {"ema": {"shadow": []}, "model": {f"module._orig_mod.{name}": state[name] for name in state}},
        lambda state: {name: torch.nn.Parameter(tensor) for name, tensor in state.items()},
        lambda state: {
            "model": sit_state(9),
            "ema": state,
            "args": argparse.Namespace(path_type="Linear", prediction="velocity"),
        },
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_every_wrapping_gives_the_same_weights(tmp_path, wrap, legacy):
    state = sit_state()
    torch.save(wrap(state), tmp_path / "file.pt", _use_new_zipfile_serialization=not legacy)
    content = read_content(tmp_path / "file.pt")
    found, _ = find_state(content, FLOW_KEYS, "x_embedder.proj.weight")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert find_state(content, ADAPTER_KEYS, "conv_in.weight") == ({}, "")
    assert training_options(tmp_path, content).keys() <= {"path_type", "prediction"}


def test_the_average_is_taken_and_said_to_be(tmp_path, suite):
    source = saved(tmp_path / "a.pt", {"model": sit_state(1), "ema": sit_state(2), "steps": 7})
    found, key = flow_of(source)
    assert torch.equal(found["pos_embed"], sit_state(2)["pos_embed"])
    assert key == "ema"
    notes = converted(source, tmp_path / "weights", suite, TINY).entry["source"]
    assert (notes["taken"], notes["step"], notes["converter"]) == ({"flow": "ema"}, 7, "published")


def test_files_without_a_sit(tmp_path, suite):
    def refused(path, words):
        with pytest.raises(UserError, match=words):
            converted(path, tmp_path / "weights", suite, TINY)

    refused(tmp_path / "absent.pt", "No such file")
    refused(tmp_path, "Is a directory")
    refused(saved(tmp_path / "list.pt", [1, 2]), "holds a list")
    refused(saved(tmp_path / "adapter.pt", {"conv_in.weight": torch.zeros(1)}), r"holds no SiT.*It has: conv_in\.weight")
    diverged = sit_state() | {"blocks.1.mlp.fc1.bias": torch.full((4 * WIDTH,), torch.nan)}
    refused(saved(tmp_path / "nan.pt", diverged), r"blocks\.1\.mlp\.fc1\.bias.*not finite")
    for given in ({"path_type": "cosine"}, {"prediction": "noise"}):
        content = {"ema": sit_state(), "args": argparse.Namespace(**given)}
        refused(saved(tmp_path / "path.pt", content), "straight paths")
    own = converted(saved(tmp_path / "a.pt", sit_state()), tmp_path / "own", suite, TINY).path
    refused(own, r"own format already.*weights\.path=.*own\.")
    with pytest.raises(UserError, match=r"convert\.num_head'.*Did you mean 'convert\.num_heads'"):
        convert(tmp_path / "a.pt", tmp_path / "weights", suite, {"num_head": 4})
    assert not (tmp_path / "weights").exists()


def test_another_layout_is_one_readable_report(suite):
    state = sit_state()
    del state["blocks.1.mlp.fc2.bias"]
    state["blocks.0.attn.q_norm.scale"] = torch.ones(WIDTH // HEADS)
    state["pos_embed"] = state["pos_embed"].squeeze(0).unsqueeze(1).transpose(0, 1)
    state["blocks.2.attn.proj.weight"] = torch.zeros(WIDTH, WIDTH + 1)
    with pytest.raises(UserError) as error:
        converted_flow(state, suite, TINY)
    for words in (
        "1 missing: blocks.1.mlp.fc2.bias",
        "1 unexpected: blocks.0.attn.q_norm.scale",
        f"1 of another shape: blocks.2.attn.proj.weight ({WIDTH}, {WIDTH + 1}) instead of ({WIDTH}, {WIDTH})",
        "qk-norm",
    ):
        assert words in str(error.value)
    many = sit_state() | {f"extra.{number}": torch.zeros(1) for number in range(9)}
    with pytest.raises(UserError, match=r"9 unexpected: extra\.0, extra\.1, extra\.2, extra\.3, \.\.\."):
        converted_flow(many, suite, TINY)


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({"pos_embed": torch.zeros(1, 64, WIDTH)}, TINY, "latents of 4x16x16; those of the suite tiny are 4x8x8"),
        ({"pos_embed": None}, TINY, "pos_embed is missing"),
        ({"x_embedder.proj.weight": torch.zeros(WIDTH, 16)}, TINY, "x_embedder.proj.weight has the shape"),
        ({"y_embedder.embedding_table.weight": torch.zeros(9, WIDTH)}, TINY, r"embedding_table.weight \(9, 48\) instead of"),
        ({"final_layer.linear.bias": None}, TINY, "missing: final_layer.linear.bias"),
        ({}, PublishedOptions(), "num_heads is needed"),
        ({}, PublishedOptions(num_heads=5), "num_heads 5"),
        ({}, PublishedOptions(num_heads=HEADS, dmf_depth=9), "dmf_depth"),
    ],
)
def test_what_does_not_fit_the_suite_is_named(suite, change, options, words):
    state = {name: tensor for name, tensor in (sit_state(sigma=True) | change).items() if tensor is not None}
    with pytest.raises(UserError, match=words):
        converted_flow(state, suite, options)


def test_parameters_of_training_alone_are_left_out_and_noted(suite):
    state = sit_state() | {"projectors.0.0.weight": torch.zeros(2, 2), "logvar_linear.bias": torch.zeros(1)}
    converted, _, notes = converted_flow(state, suite, TINY)
    assert converted.keys() == sit_state().keys()
    assert notes["left_out"] == ["logvar_linear.bias", "projectors.0.0.weight"]


def test_a_missing_null_class_is_the_mean_of_the_others(suite):
    state = sit_state(null=False)
    converted, _, notes = converted_flow(state, suite, TINY)
    table = converted["y_embedder.embedding_table.weight"]
    assert torch.equal(table[:-1], state["y_embedder.embedding_table.weight"])
    assert torch.allclose(table[-1], table[:-1].mean(0))
    assert notes["null_class"].startswith("not in the file")


@pytest.mark.parametrize(
    ("given", "settings", "depth", "expected"),
    [(1, {"dmf_depth": 2}, 3, 1), (None, {"dmf_depth": 1}, 3, 1), (None, {"dmf_depth": 20}, 3, 3), (None, {}, 6, 4)],
)
def test_dmf_depth_is_what_was_stated_then_the_files_own_then_two_thirds(suite, given, settings, depth, expected):
    options = PublishedOptions(num_heads=HEADS, dmf_depth=given)
    _, architecture, notes = converted_flow(sit_state(depth=depth), suite, options, settings.get("dmf_depth"))
    assert architecture["dmf_depth"] == expected
    assert ("assumed" in notes["dmf_depth"]) is (given is None and not settings)


@pytest.mark.parametrize(
    ("size", "width", "depth"), [("S/2", 384, 12), ("B/2", 768, 12), ("L/2", 1024, 24), ("XL/2", 1152, 28)]
)
def test_the_architecture_of_a_published_size_follows_from_its_shapes(size, width, depth):
    shapes = sit_shapes(width, depth, size=32, classes=1000)
    state = {name: torch.empty(shape) for name, shape in shapes.items()}  # never touched, so without memory
    _, found, _ = converted_flow(state, suites.get("imagenet256")({}), PublishedOptions())
    shape = {"input_size": 32, "in_channels": 4, "num_classes": 1000, "mlp_ratio": 4.0}
    assert found == expand_sit_size({"size": size}) | shape


def test_a_vfm_checkpoint_becomes_one_file_that_the_method_loads(tmp_path, suite):
    flow, adapter = sit_state(2, sigma=True), adapter_state(2)
    options = argparse.Namespace(
        model="DMFT-B/2", dmf_depth=DMF_DEPTH, num_inv_probs=6, pretrained_sigma=True, path_type="linear"
    )
    content = {"model": sit_state(1, sigma=True), "ema": flow, "adapter_model": adapter_state(1), "ema_adapter": adapter}
    source = saved(tmp_path / "0100000.pt", {**content, "opt_flow": {}, "opt_adapter": {}, "args": options, "steps": 100_000})
    written = converted(source, tmp_path / "weights", suite, PublishedOptions(num_heads=HEADS, licence="MIT"))
    assert written.name == "vfm"
    assert written.path.exists()

    weights = WeightStore(tmp_path / "weights", "").load("vfm")
    entry = weights.entry
    network = flow_network(suite.latent_shape, entry["architecture"]["flow"])
    network.load_state_dict(weights.part("flow"))
    x, t, r, label = inputs(torch.float32)
    expected = -published_sit(flow, x, 1 - t, 1 - r, label)
    assert (network(x, t, r, label) - expected).abs().max() < 1e-5 * expected.abs().max()
    own = NoiseAdapter(**entry["architecture"]["adapter"])
    own.load_state_dict(weights.part("adapter"))
    y, problem = torch.randn(2, 3, IMAGE, IMAGE), torch.tensor([5, 2])
    for found, wanted in zip(own(y, problem), published_adapter(adapter, y, problem), strict=True):
        assert torch.allclose(found, wanted, atol=1e-4)

    assert entry["problems"] == list(PUBLISHED_PROBLEMS)
    assert entry["problem_options"]["inpaint_random"] == suite.task("inpaint_random", {}).options.model_dump(mode="json")
    found = entry["source"]
    assert found["taken"] == {"flow": "ema", "adapter": "ema_adapter"}
    assert (found["file"], found["step"], found["licence"]) == ("0100000.pt", 100_000, "MIT")
    assert (found["learned_sigma"], found["time_convention"]) == (True, "noise_at_zero")
    assert found["dmf_depth"].startswith("from the training's options")
    assert found["sha256"] == entry["inputs"]["checkpoint"] == file_sha256(source)
    json.dumps(entry)
    assert any("noise_at_zero" in line for line in written.report())

    alone = converted(source, tmp_path / "weights", suite, PublishedOptions(num_heads=HEADS, part="flow"))
    assert alone.name == "flow"
    assert alone.entry["source"]["taken"] == {"flow": "ema"}
    assert "problems" not in alone.entry
    assert "vfm" in json.loads((tmp_path / "weights/manifest.json").read_text())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_keep_their_precision(tmp_path, suite, dtype):
    source = saved(tmp_path / "a.pt", sit_state(sigma=True, dtype=dtype))
    written = converted(source, tmp_path, suite, TINY)
    tensors = load_file(written.path)
    assert tensors["flow.blocks.0.mlp.fc1.weight"].dtype == dtype
    # Turned by the time reversal: rounded once only.
    assert tensors["flow.t_embedder.mlp.0.weight"].dtype == torch.float32


def test_the_list_of_problems_must_fit_the_adapter(tmp_path, suite):
    content = {"ema": sit_state(), "ema_adapter": adapter_state(problems=2)}
    source = saved(tmp_path / "a.pt", content)
    with pytest.raises(UserError, match="problems: the adapter has 2"):
        converted(source, tmp_path / "weights", suite, TINY)
    assert not (tmp_path / "weights").exists()
    options = TINY.model_copy(update={"problems": ("denoise", "no_such_task")})
    with pytest.raises(UserError, match="no_such_task"):
        converted(source, tmp_path / "weights", suite, options)
    options = TINY.model_copy(update={"problems": ("hdr", "denoise")})
    assert converted(source, tmp_path / "weights", suite, options).entry["problems"] == ["hdr", "denoise"]


def test_an_adapter_of_another_layout_is_refused(tmp_path):
    state = adapter_state()
    with pytest.raises(UserError, match="halves 1 times"):
        convert_adapter(tmp_path, state, 64, 8)
    with pytest.raises(UserError, match="31 channels"):
        convert_adapter(tmp_path, state | {"conv_in.weight": torch.zeros(31, 3, 3, 3)}, IMAGE, SIZE)
    with pytest.raises(UserError, match=r"1 missing: mid_block1\.film2\.fc\.bias"):
        convert_adapter(tmp_path, {k: v for k, v in state.items() if k != "mid_block1.film2.fc.bias"}, IMAGE, SIZE)
    with pytest.raises(UserError, match=r"class_embed\.0\.weight is missing"):
        convert_adapter(tmp_path, {"conv_in.weight": state["conv_in.weight"]}, IMAGE, SIZE)


@pytest.mark.parametrize("size", ["small", "base"])
def test_our_adapter_has_a_place_for_every_parameter_of_each_published_size(tmp_path, size):
    sizes = expand_adapter_size({"size": size})
    own = NoiseAdapter(**sizes).state_dict()
    published = {published_name(name, sizes["blocks_per_stage"]): tensor for name, tensor in own.items()}
    converted, architecture = convert_adapter(tmp_path, published, 256, 32)
    assert converted.keys() == own.keys()
    assert all(torch.equal(converted[name], own[name]) for name in own)
    assert architecture == sizes | {
        "image_size": 256,
        "image_channels": 3,
        "latent_size": 32,
        "latent_channels": 4,
        "num_problems": 6,
        "channel_multipliers": [1, 2, 4, 4],
        "norm_groups": 32,
    }


def published_name(name, blocks):
    """The authors' name of one of our parameters."""
    parts = name.split(".")
    if parts[0] == "stages":
        inner = ["downsample"] if parts[2] == str(blocks) else ["res_blocks", parts[2]]
        parts = ["down_blocks", parts[1], *inner, *parts[3:]]
    elif parts[0] == "middle":
        parts = [f"mid_block{int(parts[1]) + 1}", *parts[2:]]
    elif parts[0] == "embedding":
        parts[0] = "class_embed"
    return ".".join("fc" if part == "linear" else part for part in parts)
