"""Owns the command that measures the demo checkpoints: obedience to captions, reconstruction, speed, a look."""

import argparse
import hashlib
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_training.autoencoder import as_images
from demo_training.captions import caption
from demo_training.card import card
from demo_training.contact_sheet import PROMPTS, contact_sheet
from demo_training.pictures import render_all, sample_scenes
from demo_training.probe import Probe, load_probe, train_probe
from demo_training.scenes import Combination, SceneSampler
from demo_training.scores import Scores, score
from demo_training.training import Budget, Environment, state_path
from diffusers import StableDiffusion3Pipeline, StableDiffusionXLPipeline
from PIL import Image

SIZE = 128
BATCH = 20
# What the cards recommend for each family.
GUIDANCE = {"demo-sdxl": 4.0, "demo-sd3": 4.0}
Generate = Callable[[list[str], list[int]], list[Image.Image]]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(GUIDANCE), help="which checkpoints")
    parser.add_argument("--checkpoints", type=Path, default=Path("pipelines/demo"))
    parser.add_argument("--work", type=Path, default=Path("demo-work"), help="the folder of train_demo.py")
    parser.add_argument("--sheets", type=Path, default=Path("docs"), help="where the contact sheets go")
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, help="instead of each checkpoint's own")
    parser.add_argument("--probe-minutes", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def load_pipeline(folder: Path) -> Any:
    """As anybody would load it: offline, without options but the missing T5."""
    if folder.name == "demo-sd3":
        return StableDiffusion3Pipeline.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, text_encoder_3=None, tokenizer_3=None
        )
    return StableDiffusionXLPipeline.from_pretrained(folder, use_safetensors=True, local_files_only=True)


def generator_of(pipeline: Any, steps: int, guidance: float) -> Generate:
    pipeline.set_progress_bar_config(disable=True)
    # Without a T5 the demo uses no tokens of it; diffusers would append 256 empty ones.
    options = {"max_sequence_length": 0} if isinstance(pipeline, StableDiffusion3Pipeline) else {}

    def generate(prompts: list[str], seeds: list[int]) -> list[Image.Image]:
        images: list[Image.Image] = pipeline(
            prompts,
            num_inference_steps=steps,
            guidance_scale=guidance,
            width=SIZE,
            height=SIZE,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            **options,
        ).images
        return images

    return generate


def held_out_captions(count: int, seed: int) -> list[tuple[Combination, str]]:
    sampler, rng = SceneSampler(held_out=True), random.Random(f"evaluation {seed}")
    combinations = [sampler.sample(rng) for _ in range(count)]
    return [(combination, caption(combination, rng, complete=True)) for combination in combinations]


def as_tensor(images: list[Image.Image]) -> torch.Tensor:
    return as_images(torch.from_numpy(np.stack([np.asarray(image) for image in images])))


def obedience(generate: Generate, probe: Probe, captions: list[tuple[Combination, str]]) -> Scores:
    """Make a picture of every caption and ask the probe what it shows."""
    seen = []
    for start in range(0, len(captions), BATCH):
        prompts = [text for _, text in captions[start : start + BATCH]]
        seeds = list(range(start, start + len(prompts)))
        seen += probe.look(as_tensor(generate(prompts, seeds)))
        print(f"  {start + len(prompts)} of {len(captions)}", flush=True)
    return score([combination for combination, _ in captions], seen)


@torch.inference_mode()
def reconstruction(autoencoder: Any, probe: Probe, seed: int) -> tuple[float, Scores]:
    """Mean PSNR (dB) over 200 held-out renders, and what the probe sees in their reconstructions."""
    scenes = sample_scenes(200, seed + 1, (SIZE, SIZE), held_out=True)
    decibels, seen = [], []
    for start in range(0, len(scenes), BATCH):
        images = as_images(torch.from_numpy(render_all(scenes[start : start + BATCH])))
        decoded = autoencoder(images).sample.clamp(-1, 1)
        errors = ((decoded - images) / 2).square().mean((1, 2, 3))
        decibels += (-10 * errors.log10()).tolist()
        seen += probe.look(decoded)
    return sum(decibels) / len(decibels), score([scene.combination for scene in scenes], seen)


def seconds_a_picture(generate: Generate) -> float:
    """The fastest of three single pictures: what the machine can do when nothing else runs."""
    durations = []
    for _ in range(3):
        began = time.perf_counter()
        generate([PROMPTS[0]], [0])
        durations.append(time.perf_counter() - began)
    return min(durations)


def evaluate(name: str, arguments: argparse.Namespace, probe: Probe) -> dict[str, Any]:
    pipeline = load_pipeline(arguments.checkpoints / name)
    guidance = arguments.guidance or GUIDANCE[name]
    generate = generator_of(pipeline, arguments.steps, guidance)
    print(f"{name}: {arguments.steps} steps, guidance {guidance}", flush=True)
    psnr, through_autoencoder = reconstruction(pipeline.vae, probe, arguments.seed)
    seconds = seconds_a_picture(generate)
    images = generate(list(PROMPTS), [0] * len(PROMPTS))
    contact_sheet(images).save(arguments.sheets / f"{name}.png")
    scores = obedience(generate, probe, held_out_captions(arguments.captions, arguments.seed))
    result = {
        "steps": arguments.steps,
        "guidance": guidance,
        "threads": arguments.threads,
        "captions": arguments.captions,
        "denoiser_sha256": digest(pipeline, arguments.checkpoints / name),
        "psnr": round(psnr, 2),
        "seconds_a_picture": round(seconds, 2),
        "scores": scores.rounded(),
        "probe_on_reconstructions": through_autoencoder.rounded(),
    }
    write_down(name, arguments, pipeline, result)
    return result


def digest(pipeline: Any, folder: Path) -> str:
    """Of the file that was judged, so that nobody takes these figures for those of other weights."""
    (weights,) = (folder / ("unet" if hasattr(pipeline, "unet") else "transformer")).glob("*.safetensors")
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def write_down(name: str, arguments: argparse.Namespace, pipeline: Any, result: dict[str, Any]) -> None:
    """Put the figures and the card beside the weights."""
    folder = arguments.checkpoints / name
    networks = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    parameters = sum(parameter.numel() for network in networks for parameter in network.parameters())
    megabytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    (folder / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n")
    text = card(name, arguments.work, arguments.seed, parameters, megabytes, result)
    (folder / "README.md").write_text(text)


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    environment = Environment(arguments.work, torch.device("cpu"), arguments.seed)
    if not state_path(arguments.work, "probe").exists():
        train_probe(environment, Budget(minutes=arguments.probe_minutes))
    probe = load_probe(environment)
    for name in arguments.names:
        result = evaluate(name, arguments, probe)
        print(json.dumps(result, indent=2), flush=True)


if __name__ == "__main__":
    main()
