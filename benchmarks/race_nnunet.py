"""Train nnU-Net's 2d configuration for benchmarks.race. Runs in the environment of race-nnunet.txt.

    python -m benchmarks.race_nnunet --out FOLDER --seed 0 --cap 10800

The trainer is nnU-Net's own but for two things. Its polynomial learning rate falls over the cap: by the share of its
seconds that training has taken, before each iteration, instead of the share of 1,000 epochs, before each epoch. And
training ends at the cap. Every 50 iterations, the clock stops and the validation films are predicted.
"""

import argparse
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.export_prediction import (
    convert_predicted_logits_to_segmentation_with_correct_shape as on_original_grid,
)
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from benchmarks.race_clock import FACTS, Clock, Facts, Maps, save_facts, save_maps, versions_of
from benchmarks.race_films import DATASET, FOLD
from pneumo_dist.scoring.rounding import to_p8
from shards.files import atomic_write
from shards.parent import bind_forks, die_with_parent

THREADS = 2
CONFIGURATION, PLANS = "2d", "nnUNetPlans"


class CapReached(Exception):
    """The training has taken its time."""


class RaceTrainer(nnUNetTrainer):  # type: ignore[misc]
    """nnU-Net's trainer within a cap. `begin` must be called before training."""

    def begin(self, out: Path, cap: float, every: int) -> None:
        """Set the folder, the seconds of training, the iterations between maps; load what an earlier run has saved."""
        self._out, self.cap, self._every = out, cap, every
        self._state = out / "state.json"
        state = json.loads(self._state.read_text()) if self._state.exists() else {}
        self._clock = Clock(state.get("seconds", 0.0))
        self._iterations, self.films = state.get("iterations", 0), state.get("films", 0)
        for path in (out / "maps").glob("*.npz"):
            if int(path.stem) > self._iterations:
                path.unlink()
        if state:
            self.load_checkpoint(str(out / state["checkpoint"]))

    @property
    def seconds(self) -> float:
        return self._clock.seconds

    def configure_optimizers(self) -> tuple[Any, Any]:
        optimizer, _ = super().configure_optimizers()
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.cap)

    def run_training(self) -> None:
        with suppress(CapReached):
            super().run_training()
            return
        self.on_train_end()

    def train_step(self, batch: dict[str, Any]) -> Any:
        self.lr_scheduler.step(min(self._clock.seconds, self.cap))
        loss = super().train_step(batch)
        self._clock.start()
        self._iterations += 1
        self.films += len(batch["data"])
        is_over = self._clock.seconds >= self.cap
        if is_over or self._iterations % self._every == 0:
            # Meanwhile the workers fill their queue of six batches, which is nnU-Net's gain.
            with self._clock.paused():
                self._store(f"maps/{self._iterations:06d}.npz", mirrored=False)
                if is_over:  # as nnUNetv2_predict does by default
                    self._store("mirrored.npz", mirrored=True)
        if is_over:
            raise CapReached
        return loss

    def on_epoch_end(self) -> None:
        super().on_epoch_end()
        with self._clock.paused():
            self._save_state()

    def _save_state(self) -> None:
        """Save what an interrupted run needs. The state names the checkpoint, so that both fit each other."""
        name = f"checkpoint-{self._iterations}.pth"
        self.current_epoch -= 1  # save_checkpoint expects to be called before the epoch counts
        self.save_checkpoint(str(self._out / name))
        self.current_epoch += 1
        state = {"checkpoint": name, "seconds": self.seconds, "iterations": self._iterations, "films": self.films}
        atomic_write(self._state, json.dumps(state).encode())
        for path in self._out.glob("checkpoint-*.pth"):
            if path.name != name:
                path.unlink()

    def _store(self, name: str, mirrored: bool) -> None:
        self.set_deep_supervision_enabled(False)
        self.network.eval()
        keys, maps = self._maps(mirrored)
        self.network.train()
        self.set_deep_supervision_enabled(self.enable_deep_supervision)
        save_maps(self._out / name, self.seconds, keys, maps)

    def _maps(self, mirrored: bool) -> tuple[list[str], Maps]:
        """Predict the validation films as nnU-Net's own validation does, with or without its mirrored views."""
        predictor = nnUNetPredictor(use_mirroring=mirrored, device=self.device, allow_tqdm=False)
        plans, configuration = self.plans_manager, self.configuration_manager
        axes = self.inference_allowed_mirroring_axes
        name = self.__class__.__name__
        predictor.manual_initialization(self.network, plans, configuration, None, self.dataset_json, name, axes)
        _, keys = self.do_split()
        films = self.dataset_class(self.preprocessed_dataset_folder, keys)
        maps = []
        for key in keys:
            data, _, _, properties = films.load_case(key)
            logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(np.array(data[:])))
            options = {"return_probabilities": True, "num_threads_torch": THREADS}
            label_manager = self.label_manager
            _, classes = on_original_grid(logits, plans, configuration, label_manager, properties, **options)
            maps.append(to_p8(torch.from_numpy(classes[1])[None])[0])
        return keys, np.stack(maps)


def settings_of(trainer: RaceTrainer) -> dict[str, str]:
    """Return the settings that nnU-Net planned, or has by default."""
    plan = trainer.configuration_manager
    widths = plan.network_arch_init_kwargs["features_per_stage"]
    count = sum(weights.numel() for weights in trainer.network.parameters())
    return {
        "network": f"{plan.network_arch_class_name.rpartition('.')[2]}, {len(widths)} stages of {widths[0]} to "
        f"{widths[-1]} channels, deep supervision",
        "parameters": f"{count / 1e6:.1f} million",
        "image size": " x ".join(map(str, plan.patch_size)),
        "batch": str(trainer.batch_size),
        "optimizer": f"SGD, Nesterov momentum 0.99, weight decay {trainer.weight_decay:g}, gradient norm at most 12",
        "learning rate": f"{trainer.initial_lr:g}",
        "schedule": f"polynomial, power 0.9, to 0 after {trainer.cap / 3600:g} h of training",
        "loss": f"cross-entropy + Dice (over the {'batch' if plan.batch_dice else 'film'})",
        "augmentation": "rotation to 180°, scale 0.7 to 1.4, noise, blur, brightness, contrast, low resolution, gamma, "
        "mirroring in both axes",
        "films drawn": f"at random; {trainer.oversample_foreground_percent:.0%} of a batch with the label in the patch",
        "length": f"the cap; epochs of {trainer.num_iterations_per_epoch} iterations and "
        f"{trainer.num_val_iterations_per_epoch} of validation",
        "precision": "float32",
        "start": "random weights",
    }


def main() -> None:
    die_with_parent()
    bind_forks()  # nnU-Net's workers would outlive it
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for maps and facts")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights; the workers draw without one")
    parser.add_argument("--cap", type=float, default=10_800.0, help="seconds of training")
    parser.add_argument("--every", type=int, default=50, help="iterations between maps")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)  # nnUNetv2_train gives torch all cores
    torch.manual_seed(arguments.seed)
    folder = Path(nnUNet_preprocessed) / DATASET
    plans, description = (json.loads((folder / name).read_text()) for name in (f"{PLANS}.json", "dataset.json"))
    plans["continue_training"] = (arguments.out / "state.json").exists()
    trainer = RaceTrainer(plans, CONFIGURATION, FOLD, description, torch.device("cpu"))
    trainer.begin(arguments.out, arguments.cap, arguments.every)
    trainer.run_training()
    versions = versions_of("nnunetv2", "batchgeneratorsv2", "dynamic-network-architectures", "torch")
    facts = Facts(settings_of(trainer), versions, trainer.seconds, trainer.films)
    save_facts(arguments.out / FACTS, facts)


if __name__ == "__main__":
    main()
