"""``i2i-train-judge``: train the networks that score ToyFaces, and record how well they do."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Return the command's options."""
    parser = argparse.ArgumentParser(
        prog="i2i-train-judge",
        description="Train the judge of ToyFaces; write judge_v1.pt and judge_v1.json. It takes 12 minutes.",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/judge"), help="folder to write into (outputs/judge)"
    )
    parser.add_argument("--faces", type=int, default=5000, help="training faces (5000)")
    parser.add_argument("--steps", type=int, default=5600, help="optimisation steps (5600)")
    parser.add_argument("--batch-size", type=int, default=16, help="pictures per step (16)")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="highest rate (0.003)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and batches (0)")
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads; the shipped judge was trained with 1 (1)"
    )
    parser.add_argument("--held-out", type=int, default=200, help="test faces to score it on (200)")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    """Run the console command."""
    arguments = parse_arguments(words)

    import torch

    from i2i_lightning.metrics.judge import SCORES_NAME, WEIGHTS_NAME, judge_from_state, save_judge
    from i2i_lightning.metrics.judge_training import score_judge, train_judge
    from i2i_lightning.types import UserError

    def say(text: str) -> None:
        print(text, flush=True)

    torch.set_num_threads(arguments.threads)
    try:
        network = train_judge(
            num_faces=arguments.faces,
            steps=arguments.steps,
            batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate,
            seed=arguments.seed,
            say=say,
        )
    except UserError as error:
        sys.exit(f"i2i-train-judge: {error}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    weights = arguments.out / WEIGHTS_NAME
    save_judge(network, str(weights))
    # Scored as it will be used: from the half-precision file.
    judge = judge_from_state(torch.load(weights, map_location="cpu", weights_only=True))
    recipe = {key: value for key, value in vars(arguments).items() if key != "out"}
    rows = score_judge(judge, arguments.held_out)
    scores = {"recipe": recipe, "torch": torch.__version__, "test": rows}
    (arguments.out / SCORES_NAME).write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    for name, row in rows.items():
        if name in ("blank", "chance"):
            continue
        say(
            f"{name}: mean IoU {row['iou']:.3f}, pixels {row['pixel_accuracy']:.3f},"
            f" landmarks {row['landmark_error']:.3f}, parameters {row['parameter_error']:.3f},"
            f" attributes {row['attribute_error']:.3f}"
        )
    say(f"wrote {weights} ({weights.stat().st_size / 2**20:.2f} MB) and {SCORES_NAME}")


if __name__ == "__main__":
    main()
