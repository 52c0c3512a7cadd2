"""Components of training: loss, optimizer, weight average, learning rate, crops."""

from nnunet_octreenca.training.crops import crop_origins, cut
from nnunet_octreenca.training.loss import SegmentationLoss
from nnunet_octreenca.training.schedule import learning_rate
from nnunet_octreenca.training.weight_average import WeightAverage

__all__ = ["SegmentationLoss", "WeightAverage", "crop_origins", "cut", "learning_rate"]
