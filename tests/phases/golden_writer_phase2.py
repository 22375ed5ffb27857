"""Write case files of phase 2 in the layout of the stored ones, computed by the plain baseline under benchmarks/."""

from dataclasses import asdict

import torch
from golden_reader import learning_rate
from golden_writer import THEIR_NAMES, Sizes, View, save

# golden_writer has made benchmarks/ importable
from plain_image import ImageSizes
from plain_phase2 import ORDER, Pair, PairTrainer, PlainPair

SMALL = Sizes(96, 8, 24, 2, 3, 16, 1, 2, 1.0)
SMALL_IMAGE = ImageSizes(16, 4, 16, 2, 2, 24, 8, 2, 2, 12, 2)
README = Pair(0.25, 1.5, 0.75, 0.5)
IMAGE_NAMES = {
    "size": "image_size",
    "patch": "patch_size",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "decoder_width": "decoder_hidden_size",
    "decoder_depth": "decoder_num_hidden_layers",
    "decoder_heads": "decoder_num_attention_heads",
    "decoder_hidden": "decoder_intermediate_size",
    "eps": "layer_norm_eps",
}


def moved_pair(pair, sizes, image, seed):
    """Networks of which nothing is where it began but the tables that are never trained."""
    torch.manual_seed(seed)
    network = PlainPair(sizes, image, pair)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.requires_grad or not name.endswith(("pos_embed", "position_embeddings")):
                parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def meta_of(kind, network, batch, **more):
    pair, sizes, image = asdict(network.pair), network.fmri.sizes, asdict(network.img.sizes)
    fmri_config = {THEIR_NAMES.get(name, name): value for name, value in asdict(sizes).items()}
    image_config = {IMAGE_NAMES[name]: value for name, value in image.items() if name in IMAGE_NAMES}
    image_config |= {"norm_pix_loss": pair.pop("norm_pix_loss"), "hidden_act": "gelu", "num_channels": 3}
    configs = {"fmri_config": fmri_config, "image_config": image_config}
    return {"kind": kind, "batch": batch, "num_cross_encoder_layers": image["cross_layers"], **configs, **pair, **more}


def states(network, prefix="{part}.sd."):
    parts = {"fmri": network.fmri, "img": network.img}
    return {
        prefix.format(part=part) + name: value.clone()
        for part in parts
        for name, value in parts[part].state_dict().items()
    }


def inputs(network, batch):
    sizes, side = network.fmri.sizes, network.img.sizes.size
    return torch.randn(batch, 1, sizes.voxels), torch.randn(batch, 3, side, side)


def write_pair_case(path, pair=README, sizes=SMALL, image=SMALL_IMAGE, batch=3, seed=1):
    """One forward and backward."""
    network = moved_pair(pair, sizes, image, seed)
    x_B1V, pixels_BCSS = inputs(network, batch)
    views = network.drawn(batch)
    told = network(x_B1V, pixels_BCSS, views)
    told["loss"].backward()
    tensors = states(network) | {"in.fmri": x_B1V, "in.pixel_values": pixels_BCSS}
    tensors |= {f"grad.{name}": p.grad for name, p in network.named_parameters() if p.grad is not None}
    tensors |= {f"rng.{name}.{part}": value for name, view in views.items() for part, value in asdict(view).items()}
    tensors |= {f"out.{name}": value[None] if value.ndim == 0 else value for name, value in told.items()}
    trainable = [name for name, p in network.img.named_parameters() if p.requires_grad]
    return save(path, meta_of("phase2", network, batch, img_trainable=trainable), tensors)


def write_pair_training(
    path, pair=README, sizes=SMALL, image=SMALL_IMAGE, batch=2, epochs=2, batches=2, evaluated=1, seed=2
):
    """Epochs over the batches, each followed by an evaluation on the first ``evaluated`` of them."""
    network = moved_pair(pair, sizes, image, seed)
    names = [name for name, p in network.named_parameters() if p.requires_grad]
    no_decay = [name for name, p in network.named_parameters() if p.requires_grad and p.ndim <= 1]
    meta = meta_of(
        "phase2_train", network, batch, lr=1e-3, min_lr=1e-5, warmup_epochs=1, num_epoch=epochs, clip_grad=0.8,
        weight_decay=0.05, betas=[0.9, 0.95], no_decay=no_decay, decay=[name for name in names if name not in no_decay],
    )  # fmt: skip
    data = [inputs(network, batch) for _ in range(batches)]
    calls = epochs * (batches + evaluated)
    noise = {name: torch.rand(calls, batch, length) for name, length in network.lengths.items()}
    drawn = iter(
        {name: View.of_noise(noise[name][call], network.pair.ratios[name]) for name in ORDER} for call in range(calls)
    )
    tensors = states(network)
    tensors |= {f"in.batch{i}.fmri": x for i, (x, _) in enumerate(data)}
    tensors |= {f"in.batch{i}.pixel_values": pixels for i, (_, pixels) in enumerate(data)}
    if len(set(network.lengths.values())) == 1:
        tensors["rng.noise"] = torch.stack([noise[name] for name in ORDER], dim=1)
    else:
        tensors |= {f"rng.{name}.noise": rows for name, rows in noise.items()}
    trainer, rows, evaluations = PairTrainer(network, clip=meta["clip_grad"]), [], []
    for epoch in range(epochs):
        for index, (x, pixels) in enumerate(data):
            rate = learning_rate(meta, epoch + index / batches)
            told = trainer.step(x, pixels, next(drawn), rate)
            rows.append([told["fmri_loss"], told["img_loss"], told["norm"], rate])
        with torch.no_grad():
            seen = [network(x, pixels, next(drawn)) for x, pixels in data[:evaluated]]
        if seen:
            evaluations.append(
                [sum(told[name].item() for told in seen) / evaluated for name in ("fmri_loss", "img_loss")]
            )
    for names, table in ((("fmri", "img", "norm", "lr"), rows), (("eval_fmri", "eval_img"), evaluations)):
        for name, column in zip(names, zip(*table)):
            tensors[f"traj.{name}"] = torch.tensor(column, dtype=torch.float64)
    return save(path, meta, tensors | states(network, "final.{part}."))
