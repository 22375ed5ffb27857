"""Write case files in the layout of the stored ones, computed by the plain baseline under benchmarks/."""

import json
from dataclasses import asdict

import torch
from golden_reader import learning_rate
from safetensors.torch import save_file
from shared_files import benchmarks_importable

benchmarks_importable()
from plain_phase1 import PlainMae, Sizes, Terms, View  # noqa: E402
from plain_trainer import Trainer  # noqa: E402

SMALL = Sizes(256, 16, 32, 2, 4, 16, 1, 4, 1.0)
THEIR_NAMES = {
    "voxels": "num_voxels",
    "patch": "patch_size",
    "width": "embed_dim",
    "heads": "num_heads",
    "decoder_width": "decoder_embed_dim",
    "decoder_heads": "decoder_num_heads",
}


def moved_network(sizes, terms, seed):
    """A network none of whose parameters is where it began."""
    torch.manual_seed(seed)
    network = PlainMae(sizes, terms)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def meta_of(kind, sizes, terms, batch, ratio, **more):
    config = {THEIR_NAMES.get(name, name): value for name, value in asdict(sizes).items()}
    return {"kind": kind, "batch": batch, "mask_ratio": ratio, "config": config, "effective": asdict(terms), **more}


def save(path, meta, tensors):
    whole = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
    save_file(whole, path, {"meta": json.dumps(meta)})
    return path


def write_case(path, terms: Terms, sizes=SMALL, batch=5, ratio=0.6, seed=1):
    """One forward and backward."""
    network = moved_network(sizes, terms, seed)
    x_B1V, noise = torch.randn(batch, 1, sizes.voxels), torch.rand(2, batch, sizes.voxels // sizes.patch)
    views = {f"view{i}": View.of_noise(rows, ratio) for i, rows in enumerate(noise[: 1 + terms.do_cross_contrast])}
    losses, _ = network(x_B1V, list(views.values()))
    if losses["loss"].requires_grad:
        losses["loss"].backward()
    tensors = {f"sd.{name}": value for name, value in network.state_dict().items()} | {"in.fmri": x_B1V}
    tensors |= {f"grad.{name}": p.grad for name, p in network.named_parameters() if p.grad is not None}
    for name, view in views.items():
        latent = network.encode(x_B1V, view)
        target = x_B1V.view(batch, -1, sizes.patch)
        prediction = network.decode(latent, view)
        error = ((prediction - target) ** 2).mean(dim=2)[view.mask.bool()]
        tensors |= {f"rng.{name}.{part}": value for part, value in asdict(view).items()}
        tensors |= {f"out.{name}.latent": latent, f"out.{name}.pred": prediction}
        tensors[f"out.{name}.recon_raw"] = (error.mean() if len(error) else error.sum())[None]
    told = {"self": "self_contrast_raw", "self_view1": "self_contrast_view1_raw", "cross": "cross_contrast_raw"}
    told |= {"contrast": "contrast_loss", "loss": "loss"}
    tensors |= {f"out.{told[name]}": value[None] for name, value in losses.items() if name in told}
    return save(path, meta_of("phase1", sizes, terms, batch, ratio), tensors)


def write_training(path, terms: Terms, sizes=SMALL, batch=4, ratio=0.75, steps=6, seed=2):
    """Training over half as many batches, twice each."""
    network = moved_network(sizes, terms, seed)
    trained = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    no_decay = [name for name, p in trained if p.ndim <= 1 or name.endswith(".bias")]
    meta = meta_of(
        "phase1_train", sizes, terms, batch, ratio, lr=2.5e-3, min_lr=0.0, warmup_epochs=1, num_epoch=2, clip_grad=0.8,
        weight_decay=0.05, betas=[0.9, 0.95], no_decay=no_decay,
        decay=[name for name, _ in trained if name not in no_decay],
    )  # fmt: skip
    batches = torch.randn(steps // 2, batch, 1, sizes.voxels)
    noise = torch.rand(steps, 1 + terms.do_cross_contrast, batch, sizes.voxels // sizes.patch)
    tensors = {f"sd.{name}": value.clone() for name, value in network.state_dict().items()}
    tensors |= {f"in.batch{i}": x_B1V for i, x_B1V in enumerate(batches)} | {"rng.noise": noise}
    trainer, rows = Trainer(network, clip=meta["clip_grad"]), []
    for step in range(steps):
        rate = learning_rate(meta, step / len(batches))
        told = trainer.step(batches[step % len(batches)], [View.of_noise(v, ratio) for v in noise[step]], rate)
        rows.append([told["loss"], told["norm"], rate])
    for name, column in zip(("loss", "norm", "lr"), torch.tensor(rows, dtype=torch.float64).T):
        tensors[f"traj.{name}"] = column
    return save(path, meta, tensors | {f"final.{name}": value for name, value in network.state_dict().items()})
