"""OctreeNCATrainer: nnU-Net's trainer with OctreeNCA's network, loss, optimiser and average.

Data loader, augmentation, oversampling, splits, logging and progress.png are nnU-Net's.
"""

import io
import operator
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from nnunetv2.evaluation import evaluate_predictions
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn
from torch import distributed as dist

from nnunet_octreenca import __version__
from nnunet_octreenca.errors import CheckpointError, PlansError, TrainingError
from nnunet_octreenca.files import JsonObject
from nnunet_octreenca.integration import error_reporting, predictor, safe_loading
from nnunet_octreenca.integration.batches import loaders_only, run_loaders
from nnunet_octreenca.integration.configuration_manager import (
    require_configuration,
    use_own_preprocessor,
)
from nnunet_octreenca.integration.fold_folder import (
    FoldFolder,
    ProgressPicture,
    atomic_json,
    write_checkpoint,
)
from nnunet_octreenca.integration.nnunet_version import nnunet_version
from nnunet_octreenca.integration.worker_pools import watched_pools
from nnunet_octreenca.network import OctreeNCA
from nnunet_octreenca.octree import Shape, windows
from nnunet_octreenca.ops.fire import draw_key
from nnunet_octreenca.planning import octreenca_settings
from nnunet_octreenca.planning.plans_faults import configuration_faults
from nnunet_octreenca.planning.plans_model import check_model
from nnunet_octreenca.resources import processors
from nnunet_octreenca.training import (
    SegmentationLoss,
    WeightAverage,
    crop_origins,
    cut,
    learning_rate,
)
from nnunet_octreenca.training.checkpoints import VERSIONS, read_checkpoint
from nnunet_octreenca.training.optimizers import load_state, make_optimizer
from nnunet_octreenca.training.processes import (
    different_engines,
    global_rank,
    local_device,
    share_weights,
)
from nnunet_octreenca.training.shift import draw_offsets, moved

error_reporting.install()
nnunet_version()
predictor.install()
safe_loading.install()

# Keys of ours in a checkpoint, beside nnU-Net's.
RAW_WEIGHTS = "octreenca_raw_weights"
AVERAGE = "octreenca_weight_average"


class OctreeNCATrainer(nnUNetTrainer):
    """Trains OctreeNCA as DESIGN section 3 says: `nnUNetv2_train ... -tr OctreeNCATrainer`.

    Every hyperparameter is a key of the plans' `octreenca` block (planning.settings.Settings).
    The average of the weights is what is validated, saved as `network_weights` and predicted
    with; the raw weights go on training.
    """

    # Set by nnU-Net's constructor and `initialize`.
    is_ddp: bool
    network: nn.Module

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's signature
    ) -> None:
        # Before nnU-Net makes folders: plans of another network, or with faults, end here.
        check_model(
            plans,
            dataset_json,
            f"plans {plans.get('plans_name')!r}",
            "the data set's dataset.json",
            configuration=configuration,
            custom_names=True,
        )
        manager = PlansManager({**plans})
        require_configuration(manager, configuration)
        self.settings = octreenca_settings(
            manager.get_configuration(configuration).configuration,
            configuration_name=configuration,
            plans_name=manager.plans_name,
        )
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.is_ddp:  # nnU-Net takes for granted that there is one machine, with GPUs
            self.device = local_device(device)
        if self.device.type == "cpu" and torch.get_num_threads() > processors():
            torch.set_num_threads(processors())  # nnU-Net takes all that the machine has
        self.initial_lr = self.settings.initial_lr
        self.weight_decay = self.settings.weight_decay
        self.oversample_foreground_percent = self.settings.oversample_foreground_percent
        # nnU-Net rounds a share of the batch, which is none of a single sample.
        self.probabilistic_oversampling = self.configuration_manager.batch_size == 1
        self.num_epochs = self.settings.num_epochs
        self.num_iterations_per_epoch = self.settings.num_iterations_per_epoch
        self.num_val_iterations_per_epoch = self.settings.num_val_iterations_per_epoch
        self.enable_deep_supervision = False
        self.grad_scaler = None  # state and loss are float32, there is nothing to scale
        self.save_every = 1  # a checkpoint is a few hundred kilobytes
        self.iteration = 0
        self.skipped_in_a_row = 0
        self.average: WeightAverage | None = None
        self._averaged = ExitStack()  # open while the network carries the average
        self.fold_folder = FoldFolder(self.output_folder, fold, first=self.local_rank == 0)
        # Called at the end of an epoch.
        self.progress_picture = ProgressPicture(
            self.logger.plot_progress_png, self.print_to_log_file
        )
        self.logger.plot_progress_png = self.progress_picture
        self.check_supported()

    def check_supported(self) -> None:
        """Called last by the constructor; a subclass refuses here what it cannot train.

        Raises:
            OctreeNCAError: the plans or the machine do not suit this trainer.
        """

    # ------------------------------------------------------------------ what nnU-Net asks for

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """OctreeNCA of a configuration; also called for prediction.

        The configuration manager becomes an `OctreeNCAConfigurationManager`, which takes our
        preprocessor into nnU-Net's workers.

        Raises:
            PlansError: the configuration describes another network.
        """
        settings = octreenca_settings(
            configuration_manager.configuration,
            configuration_name="in use",
            plans_name=plans_manager.plans_name,
        )
        for fault in configuration_faults(configuration_manager.configuration):
            raise PlansError(f"plans {plans_manager.plans_name!r}: {fault}")
        use_own_preprocessor(configuration_manager)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed or 0)
            return OctreeNCA(
                num_input_channels,
                num_output_channels,
                **configuration_manager.network_arch_init_kwargs,
            )

    def initialize(self) -> None:
        """nnU-Net's, but for training on CPUs or on several machines, which it does not know."""
        if self.is_ddp and not self.was_initialized:
            self.is_ddp = False
            try:
                super().initialize()
            finally:
                self.is_ddp = True
            devices = None if self.device.type == "cpu" else [self.device.index]
            self.network = nn.parallel.DistributedDataParallel(self.network, device_ids=devices)
        else:
            super().initialize()
        self.average = WeightAverage(self.bare_network, self.settings.ema_decay)
        if self.is_ddp:
            problem = different_engines(self.bare_network.engine(), self.device)
            if problem is not None and global_rank() == 0:  # once for all machines
                self.print_to_log_file(f"WARNING: {problem}")

    def _set_batch_size_and_oversample(self) -> None:
        # nnU-Net's shares a batch among the processes; `initialize` hides them.
        hidden = self.is_ddp
        self.is_ddp = dist.is_available() and dist.is_initialized()
        try:
            if self.is_ddp and self.configuration_manager.batch_size < dist.get_world_size():
                raise TrainingError(
                    f"a batch of {self.configuration_manager.batch_size} cannot be shared by "
                    f"{dist.get_world_size()} processes; use as many or fewer, or plan larger "
                    f"batches with `nnunet_octreenca extend_plans --batch_size`"
                )
            super()._set_batch_size_and_oversample()
        finally:
            self.is_ddp = hidden

    def _do_i_compile(self) -> bool:
        return False  # the automaton is one operator already

    def _build_loss(self) -> nn.Module:
        return SegmentationLoss(
            regions=self.label_manager.has_regions,
            ignore_label=self.label_manager.ignore_label,
            dice_weight=self.settings.dice_weight,
            batch_dice=self.configuration_manager.batch_dice,
        )

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """The plans' optimizer; its rate is set at every iteration, not scheduled by epoch."""
        optimizer = make_optimizer(
            self.settings.optimizer,
            self.network.parameters(),
            self.initial_lr,
            betas=self.settings.betas,
            weight_decay=self.weight_decay,
        )
        return optimizer, _NoScheduler()

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """OctreeNCA has none."""

    def plot_network_architecture(self) -> None:
        """nnU-Net's needs a package that no longer works; the plans say it all."""

    # ------------------------------------------------------------------ training

    @property
    def bare_network(self) -> Any:
        """The network without DistributedDataParallel around it."""
        return predictor.unwrapped(self.network)

    @property
    def progress(self) -> float:
        """Part of the training that is over, 0 to 1."""
        return self.iteration / (self.num_epochs * self.num_iterations_per_epoch)

    def _learning_rate(self) -> float:
        return learning_rate(
            self.progress,
            initial_lr=self.initial_lr,
            lr_schedule=self.settings.lr_schedule,
            num_epochs=self.num_epochs,
            poly_exponent=self.settings.poly_exponent,
            lr_decay=self.settings.lr_decay,
            warm_up=self.settings.warm_up,
        )

    def _set_learning_rate(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()

    def run_training(self) -> None:
        """nnU-Net's training loop, with the fold's folder for this process alone."""
        with self.fold_folder.held("training"):
            super().run_training()

    def on_train_start(self) -> None:
        """nnU-Net's, which writes files that all folds share."""
        with atomic_json():
            super().on_train_start()

    def on_train_epoch_start(self) -> None:
        """Back to the raw weights; the learning rate is that of the epoch's first iteration."""
        self._averaged.close()
        share_weights(self.bare_network)
        self.iteration = self.current_epoch * self.num_iterations_per_epoch
        self._set_learning_rate()
        super().on_train_epoch_start()

    def on_validation_epoch_start(self) -> None:
        """The average is what is validated."""
        self._carry_average()
        super().on_validation_epoch_start()

    def _carry_average(self) -> None:
        assert self.average is not None
        self._averaged.close()
        self._averaged.enter_context(self.average.applied(self.bare_network))

    def _iteration_seed(self) -> int:
        """Of the fire draws: another for every iteration and process, the same on resuming."""
        words = (self.settings.seed or 0, self.iteration, global_rank())
        high, low = (draw_key(words[0], half, words[1], words[2]) for half in (0, 1))
        return (high << 31) | (low >> 1)

    def train_step(self, batch: dict) -> dict:
        """One iteration on a batch of nnU-Net's data loader.

        Raises:
            TrainingError: too many non-finite steps in a row.
        """
        data = batch["data"].to(self.device, non_blocking=True)
        target = batch["target"].to(self.device, non_blocking=True)
        seed = self._iteration_seed()
        generator = torch.Generator().manual_seed(seed)
        data, target = self._shifted(data, target, generator)
        crop, origins = self.settings.crop, None
        if crop is not None:
            origins = crop_origins(
                self._annotated(target), crop.shape, self.oversample_foreground_percent, generator
            )
        self._set_learning_rate()
        return self.take_step(self._training_loss(data, target, seed, origins), batch)

    def _shifted(
        self, data: Tensor, target: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Image and truth, moved as the plans' `shift` says."""
        share = self.settings.shift
        if share == 0:
            return data, target
        offsets = draw_offsets(len(data), data.shape[2:], share, generator)
        return moved(data, offsets), moved(target, offsets)

    def _training_loss(
        self, data: Tensor, target: Tensor, seed: int, origins: Sequence[Shape] | None
    ) -> Tensor:
        """Of whole contexts, or of the crops that begin at `origins`."""
        crop, weight = self.settings.crop, self.settings.loss_on_levels
        heads = self.network(data, seed=seed, crop=crop, origins=origins, every_level=weight > 0)
        loss: Tensor
        if weight > 0:
            factors = self.bare_network.factors
            starts = origins or [(0,) * (target.ndim - 2)] * len(target)
            boxes = windows(target.shape[2:], factors, crop, starts)
            loss = self.loss.on_levels(heads, target, boxes, factors, weight)
        else:
            if crop is not None and origins is not None:
                target = cut(target, crop.shape, origins)
            loss = self.loss(heads, target)
        return loss

    def take_step(self, loss: Tensor, batch: dict) -> dict:
        """Change the weights and their average by a loss, unless it or a gradient is not finite.

        Raises:
            TrainingError: too many non-finite steps in a row.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = list(self.network.parameters())
        norm = torch.nn.utils.clip_grad_norm_(
            parameters, self.settings.gradient_clip or float("inf")
        )
        self.iteration += 1
        if self._finite(loss, norm):
            self.optimizer.step()
            assert self.average is not None
            self.average.update(self.bare_network)
            self.skipped_in_a_row = 0
            return {"loss": loss.detach().cpu().numpy()}
        self._skip(batch, float(loss.detach()), float(norm))
        return {"loss": np.array(np.nan, dtype=np.float32)}

    def _annotated(self, target: Tensor) -> Tensor:
        """The target without what is to be ignored, which is no foreground to crop around."""
        if not self.label_manager.has_ignore_label:
            return target
        if self.label_manager.has_regions:
            return target[:, :-1]
        return target.masked_fill(target == self.label_manager.ignore_label, 0)

    def _finite(self, loss: Tensor, norm: Tensor) -> bool:
        """Whether the step may be taken; all processes agree."""
        finite = torch.isfinite(loss.detach()) & torch.isfinite(norm)
        if self.is_ddp:
            votes = finite.to(torch.int32)
            dist.all_reduce(votes, op=dist.ReduceOp.MIN)
            return bool(votes)
        return bool(finite)

    def _skip(self, batch: dict, loss: float, norm: float) -> None:
        self.skipped_in_a_row += 1
        cases = ", ".join(map(str, batch.get("keys", ("unknown",))))
        self.print_to_log_file(
            f"WARNING: iteration {self.iteration - 1} skipped: loss {loss:.4g}, gradient "
            f"norm {norm:.4g}, cases {cases}"
        )
        if self.skipped_in_a_row >= self.settings.max_skipped_steps:
            raise TrainingError(
                f"{self.skipped_in_a_row} training steps in a row had a loss or gradient that is "
                f"not finite, the last on the cases {cases}. Look for NaN or infinite voxels in "
                f"them, or lower initial_lr in the plans' octreenca block; `--c` continues from "
                f"the last checkpoint"
            )

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """nnU-Net's, without the steps that were skipped."""
        finite = [output for output in train_outputs if np.isfinite(output["loss"])]
        super().on_train_epoch_end(finite or train_outputs)

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Return nnU-Net's loaders, run in processes of ours (batch_workers), seeded by the plans.

        A continued training gets the batches that it would have got undisturbed.
        """
        with loaders_only():
            training, validation = super().get_dataloaders()
        return self.start_batches(training.data_loader, validation.data_loader)

    def start_batches(self, training: Any, validation: Any) -> tuple[Any, Any]:
        """Run two loaders, each in processes of its own."""
        return run_loaders(
            training,
            validation,
            iterations=(self.num_iterations_per_epoch, self.num_val_iterations_per_epoch),
            steps_per_context=self.settings.steps_per_context,
            epoch=self.current_epoch,
            seed=self.settings.seed,
            rank=self.local_rank,
            pin_memory=self.device.type == "cuda",
        )

    def on_train_end(self) -> None:
        """Ends with the average in the network, which validation goes on with."""
        super().on_train_end()
        self.progress_picture.finish()
        for batches in (self.dataloader_train, self.dataloader_val):
            if batches is not None:
                batches.close()
        self._carry_average()

    # ------------------------------------------------------------------ checkpoints

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's checkpoint with the average as `network_weights`, and what resuming needs.

        Written beside and renamed, so that a kill never leaves half a checkpoint. It holds plain
        data, which `torch.load(weights_only=True)` reads.

        Raises:
            CheckpointError: a subclass put something else into it.
        """
        if self.local_rank != 0 or self.disable_checkpointing:
            return
        assert self.average is not None
        buffer = io.BytesIO()
        super().save_checkpoint(buffer)
        buffer.seek(0)
        checkpoint = read_checkpoint(buffer, name=f"what is to be saved as {filename}")
        self._averaged.close()
        checkpoint[RAW_WEIGHTS] = {
            key: value.cpu() for key, value in self.bare_network.state_dict().items()
        }
        checkpoint[AVERAGE] = self.average.state_dict()
        checkpoint["network_weights"] = checkpoint[AVERAGE]["average"]
        checkpoint[VERSIONS] = {
            "nnunet_octreenca": __version__,
            "nnunetv2": nnunet_version(),
            "torch": str(torch.__version__),
        }
        write_checkpoint(checkpoint, filename)

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Resume training (raw weights, average, optimiser, iteration) or validate (average).

        Raises:
            CheckpointError: unreadable, of another trainer, or of another network.
        """
        name, checkpoint = "the checkpoint", filename_or_checkpoint
        if not isinstance(checkpoint, dict):
            name = str(filename_or_checkpoint)
            checkpoint = read_checkpoint(name, device=self.device)
        if AVERAGE not in checkpoint:
            raise CheckpointError(
                f"{name} was written by {checkpoint.get('trainer_name', 'another program')}, not "
                f"by OctreeNCATrainer; remove it, or train with the trainer that wrote it"
            )
        if not self.was_initialized:
            self.initialize()
        assert self.average is not None
        self._averaged.close()
        try:
            self.bare_network.load_state_dict(checkpoint[RAW_WEIGHTS])
        except (KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(
                f"{name} holds another network than the plans describe. Were the plans made again "
                f"after training? Train again, or put the old plans back ({error})"
            ) from error
        try:
            self._resume(checkpoint)
        except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
            raise CheckpointError(
                f"{name} lacks what resuming needs, or has it in another form ({error!r}); remove "
                f"it and continue from another checkpoint with --c"
            ) from error
        except RuntimeError as error:  # tensors of other shapes
            raise CheckpointError(
                f"{name} holds the state of another network's training ({error}); remove it and "
                f"continue from another checkpoint with --c"
            ) from error

    def _resume(self, checkpoint: JsonObject) -> None:
        assert self.average is not None
        self.average.load_state_dict(checkpoint[AVERAGE])
        self.my_init_kwargs = checkpoint["init_args"]
        self.current_epoch = operator.index(checkpoint["current_epoch"])
        self.iteration = self.current_epoch * self.num_iterations_per_epoch
        self.logger.load_checkpoint(checkpoint["logging"])
        self._best_ema = checkpoint["_best_ema"]
        self.inference_allowed_mirroring_axes = checkpoint["inference_allowed_mirroring_axes"]
        load_state(self.optimizer, checkpoint["optimizer_state"], self.settings.optimizer)
        self._set_learning_rate()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's validation, each case in one pass, with the average of the weights."""
        with self.fold_folder.held("validation"):
            self._carry_average()
            self.validate(save_probabilities)

    def validate(self, save_probabilities: bool) -> None:
        """Segment and score the validation cases."""
        with watched_pools(export=stock, evaluation=evaluate_predictions):
            super().perform_actual_validation(save_probabilities)


class _NoScheduler:
    """nnU-Net steps a scheduler once an epoch; ours is set at every iteration."""

    def step(self, epoch: int | None = None) -> None:
        pass
