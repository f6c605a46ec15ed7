"""Owns the command that trains the demo checkpoints: drawing, autoencoder, denoisers, export."""

import argparse
import os
import sys
from pathlib import Path

STAGES = ("data", "vae", "sdxl", "sd3", "export")
MINUTES = {"vae": 35.0, "sdxl": 110.0, "sd3": 160.0}
SMOKE_STEPS = 2
SMOKE_BATCH = 2
# glibc returns large blocks to the kernel after every layer, and the page faults then cost more than the
# arithmetic: keeping them made training on two cores about twice as fast. Read once, at process start.
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
    "MALLOC_ARENA_MAX": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="+", choices=(*STAGES, "all"))
    parser.add_argument("--minutes", type=float, help="training time of each stage named")
    parser.add_argument("--steps", type=int, help="training steps of each stage named, instead of minutes")
    parser.add_argument("--pictures", type=int, default=30_000, help="size of the data set")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("demo-work"), help="data and resumable states")
    parser.add_argument("--out", type=Path, default=Path("pipelines/demo"), help="where the checkpoints go")
    parser.add_argument("--smoke", action="store_true", help="a few steps on a few pictures, in seconds")
    return parser.parse_args()


def run(arguments: argparse.Namespace) -> None:
    import torch
    from demo_training.autoencoder import load_autoencoder, train_autoencoder
    from demo_training.diffusion import BATCH, SD3, SDXL, train_denoiser
    from demo_training.export import export_checkpoints
    from demo_training.latents import cache_latents
    from demo_training.pictures import make_data
    from demo_training.training import Budget, Environment

    torch.set_num_threads(arguments.threads)
    environment = Environment(arguments.work, torch.device(arguments.device), arguments.seed)
    environment.work.mkdir(parents=True, exist_ok=True)

    def budget(stage: str) -> Budget:
        if arguments.smoke:
            return Budget(steps=SMOKE_STEPS)
        if arguments.steps:
            return Budget(steps=arguments.steps)
        return Budget(minutes=arguments.minutes or MINUTES[stage])

    stages = STAGES if "all" in arguments.stages else arguments.stages
    if "data" in stages:
        pictures, workers = (12, 1) if arguments.smoke else (arguments.pictures, os.cpu_count() or 1)
        make_data(environment.work / "data", pictures, arguments.seed, workers)
    if "vae" in stages:
        train_autoencoder(environment, budget("vae"))
        cache_latents(environment, load_autoencoder(environment))
    for family in (SDXL, SD3):
        if family.name in stages:
            train_denoiser(family, environment, budget(family.name), SMOKE_BATCH if arguments.smoke else BATCH)
    if "export" in stages:
        export_checkpoints(environment, arguments.out)


def main() -> None:
    if not ALLOCATOR.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**ALLOCATOR, **os.environ})
    run(parse_arguments())


if __name__ == "__main__":
    main()
