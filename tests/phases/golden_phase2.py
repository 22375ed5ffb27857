"""Our phase 2 as a stored case wants it: sizes from its tensors, switches from its metadata, and its stored masks.

What the metadata leave out has the default of the paper's code, or of Hugging Face's ViT-MAE.
"""

import torch
from golden_reader import TRAIN

from cadiff.config import Phase2Job
from cadiff.layers import VIT_EPS
from cadiff.phases import Space
from cadiff.phases.crosstune import CrossTune

ORDER = ("0_img_full", "1_fmri_masked", "2_fmri_full", "3_img_masked")  # of the four masks of a step
DEFAULTS = {
    "fmri_recon_weight": 1.0,
    "img_recon_weight": 1.0,
    "mask_ratio": 0.75,
    "img_mask_ratio": 0.75,
    "do_cross_residual": True,
}
TABLE = "decoder.decoder_pos_embed"  # of the image branch: trained by the paper's code, by accident
ONLY = {"hidden_act": "gelu", "num_channels": 3, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def used(case):
    return {**DEFAULTS, **case.meta}


def trained(case):
    """Names of what the paper's code trains, "fmri." or "img." first; None where the case does not tell."""
    meta = case.meta
    if "decay" in meta:
        return set(meta["decay"]) | set(meta["no_decay"])
    if "img_trainable" not in meta:
        return None
    of_fmri = {f"fmri.{name}" for name in case.under("fmri.sd.") if not name.endswith("pos_embed")}
    return of_fmri | {f"img.{name}" for name in meta["img_trainable"]}


def layers(state, prefix):
    """How many of ``prefix``.0, ``prefix``.1, ... there are."""
    return len({name[len(prefix) + 1 :].split(".")[0] for name in state if name.startswith(f"{prefix}.")})


def phase2_job(case):
    fmri, image, meta = case.under("fmri.sd."), case.under("img.sd."), used(case)
    heads, config = meta.get("fmri_config", {}), meta.get("image_config", {})
    odd = {key: config[key] for key, value in ONLY.items() if config.get(key, value) != value}
    assert not odd, f"our image branch has no place for {odd}"
    cross = layers(fmri, "cross_blocks")
    assert cross == layers(image, "vit.encoder.layer_cross") == meta.get("num_cross_encoder_layers", cross)
    patches = image["vit.embeddings.patch_embeddings.projection.weight"]
    side = round((image[TABLE].shape[1] - 1) ** 0.5)
    table_trained = trained(case) is None or f"img.{TABLE}" in trained(case)
    return Phase2Job.model_validate(
        {
            **TRAIN,
            "data": {"shards": ["unused"], "image_size": side * patches.shape[-1]},
            "phase": "phase2",
            "model": {
                "patch": fmri["patch_embed.proj.weight"].shape[-1],
                "width": fmri["cls_token"].shape[-1],
                "depth": layers(fmri, "blocks"),
                "heads": heads.get("num_heads", 16),
                "mlp_ratio": float(heads.get("mlp_ratio", 1.0)),
                "decoder_width": fmri["mask_token"].shape[-1],
                "decoder_depth": layers(fmri, "decoder_blocks"),
                "decoder_heads": heads.get("decoder_num_heads", 16),
            },
            "image": {
                "patch": patches.shape[-1],
                "width": patches.shape[0],
                "depth": layers(image, "vit.encoder.layer"),
                "heads": config.get("num_attention_heads", 12),
                "mlp_width": image["vit.encoder.layer.0.intermediate.dense.bias"].shape[0],
                "decoder_width": image["decoder.mask_token"].shape[-1],
                "decoder_depth": layers(image, "decoder.decoder_layers"),
                "decoder_heads": config.get("decoder_num_attention_heads", 16),
                "decoder_mlp_width": image["decoder.decoder_layers.0.intermediate.dense.bias"].shape[0],
                "train_encoder": True,  # there is no pre-trained folder; ``built`` freezes it
                "train_positions": table_trained,
            },
            "cross": {"layers": cross, "residual": meta["do_cross_residual"]},
            "loss": {
                "fmri": meta["fmri_recon_weight"],
                "image": meta["img_recon_weight"],
                "fmri_mask": meta["mask_ratio"],
                "image_mask": meta["img_mask_ratio"],
                "norm_pix": config.get("norm_pix_loss", meta.get("norm_pix_loss", False)),
            },
        }
    )


def built(case):
    """Our phase with a case's weights, which trains what the paper's code trains, and nothing else."""
    fmri = case.under("fmri.sd.")
    job, voxels = phase2_job(case), fmri["patch_embed.proj.weight"].shape[-1] * (fmri["pos_embed"].shape[1] - 1)
    phase, wanted = CrossTune(job, Space(voxels, classes=0)), trained(case)
    for part, state in (("fmri", fmri), ("image", case.under("img.sd."))):
        load(phase.parts()[part], state, case.meta.get("image_config", {}))
    if wanted is None or not any(name.startswith("img.vit.encoder.layer.") for name in wanted):
        phase.image.freeze_encoder()
    if wanted is not None:
        assert wanted == {name for name, _ in named(phase)}
    return phase


def load(module, state, config):
    """By name, nothing missing or left over; biases that a case has none of are zero and stay so."""
    for name, value in module.named_parameters():
        if not config.get("qkv_bias", True) and name.endswith(("query.bias", "key.bias", "value.bias")):
            state[name] = torch.zeros_like(value)
            value.requires_grad_(False)
    module.load_state_dict(state, strict=True)
    for part in module.modules():
        if isinstance(part, torch.nn.LayerNorm) and part.eps == VIT_EPS:
            part.eps = float(config.get("layer_norm_eps", VIT_EPS))


def named(phase):
    """What is trained, under the names of the stored cases."""
    parts = {"fmri": phase.fmri, "img": phase.image}
    return [(f"{part}.{n}", p) for part in parts for n, p in parts[part].named_parameters() if p.requires_grad]


def stored_noise(case):
    """Noise of the four masks, for each time that the networks were called: training steps and evaluations."""
    if "rng.noise" in case:
        return [dict(zip(ORDER, rows)) for rows in case["rng.noise"]]
    return [dict(zip(ORDER, rows)) for rows in zip(*(case[f"rng.{view}.noise"] for view in ORDER), strict=True)]


def batches(case):
    """Signals and pixels of the stored batches, in their order."""
    count = sum(name.endswith(".fmri") for name in case.under("in.batch"))
    return [(case[f"in.batch{i}.fmri"], case[f"in.batch{i}.pixel_values"]) for i in range(count)]
