"""Image data sets: in memory, in folders, and those of torchvision."""

from vision.data.digits import Digits
from vision.data.folder import ImageFolder
from vision.data.handwriting import digit_from_image
from vision.data.memory import Images, jitter
from vision.data.mnist import MNIST5k
from vision.data.pictures import Pictures
from vision.data.preparation import Preparation
from vision.data.published import TorchvisionImages

__all__ = [
    "Digits",
    "ImageFolder",
    "Images",
    "MNIST5k",
    "Pictures",
    "Preparation",
    "TorchvisionImages",
    "digit_from_image",
    "jitter",
]
