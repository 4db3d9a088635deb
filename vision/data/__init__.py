"""Image data sets: in memory, in folders, and those of torchvision."""

from vision.data.digits import Digits
from vision.data.folder import ImageFolder
from vision.data.image_dataset import ImageData
from vision.data.mnist import MNIST5k
from vision.data.tensor_dataset import Images
from vision.data.torchvision_datasets import TorchvisionImages
from vision.data.transforms import ImageTransform

__all__ = [
    "Digits",
    "ImageData",
    "ImageFolder",
    "ImageTransform",
    "Images",
    "MNIST5k",
    "TorchvisionImages",
]
